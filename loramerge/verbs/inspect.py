"""inspect: dialect, family and problems of files, from headers alone or with the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from loramerge.adapter import Adapter, Problem
from loramerge.adapter.formats.gguf_reading import is_gguf_adapter
from loramerge.adapter.load import load
from loramerge.adapter.metadata import tags, trained_on, trigger_words
from loramerge.adapter.networks import network_of
from loramerge.adapter.readers import Reading, readings
from loramerge.dialects import DIALECTS
from loramerge.errors import FamilyError, FormatError, LoramergeError, listed
from loramerge.events import Warn
from loramerge.files.dtypes import DTYPES
from loramerge.files.gguf import is_gguf
from loramerge.library.lookup import files_of, is_adapter_folder, is_sharded
from loramerge.records import record
from loramerge.steps.parameters import Context, Doc, Verb
from loramerge.steps.shown import Shown

if TYPE_CHECKING:
    from loramerge.steps.prediction import Prediction

__all__ = ["VERB", "Inspect", "InspectResult", "Inspected", "inspect", "inspect_adapter"]


@record(kw_only=True)
class Inspect:
    """Show the dialect, family, kinds, ranks, training metadata and problems of files.

    Only headers and alphas are read, which is instant. --deep reads the weights and looks for NaN,
    untrained modules and other problems.
    """

    files: Annotated[
        tuple[str, ...],
        Doc("Adapter files, folders (recursively), patterns or names.", ("FILE",), None, "files"),
    ]
    deep: Annotated[bool, Doc("Read the weights: exact norms, and problems such as NaN.")] = False
    modules: Annotated[bool, Doc("List every module with rank, alpha and norm (reads the weights).")
    ] = False  # fmt: skip
    spectrum: Annotated[
        bool, Doc("List a summary of every module's singular values (reads the weights).")
    ] = False
    check: Annotated[
        bool, Doc("End with exit code 5 if a problem is an error (reads the weights).")
    ] = False
    base: Annotated[
        str | None,
        Doc(
            "Check the adapter against this base, and show how much of it rounding to the "
            "base's type would keep.",
            ("--base", "-b"),
            "BASE",
            "bases",
        ),
    ] = None
    hash: Annotated[bool, Doc("Show the digests of the file and of its tensors.")] = False
    metadata: Annotated[bool, Doc("Show every entry of the header's metadata.", recipe=False)] = (
        False
    )

    def repeating_steps(self, result: InspectResult) -> list[tuple[Inspect, InspectResult]]:
        """Return the step of a recipe that inspects the same files."""
        return [(replace(self, files=tuple(file.path for file in result.files)), result)]


@dataclass(repr=False, eq=False)
class Inspected(Shown):
    """The facts about one file; the names are those of `--json`."""

    headline = ("path", "what", "dialect", "family", "modules", "ranks")
    reported_as = "inspect"

    path: str
    size: int | None
    what: str
    dialect: str | None = None
    family: str | None = None
    family_reason: str | None = None
    trained_on: str | None = None
    kinds: dict[str, int] = field(default_factory=dict)
    modules: int = 0
    components: dict[str, int] = field(default_factory=dict)
    ranks: dict[int, int] = field(default_factory=dict)
    alphas: dict[float, int] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    embeddings: list[str] = field(default_factory=list)
    unknown_keys: list[str] = field(default_factory=list)
    nearest_keys: dict[str, str] = field(default_factory=dict)
    tags: list[tuple[str, int]] = field(default_factory=list)
    trigger_words: list[str] = field(default_factory=list)
    loads_in: list[str] = field(default_factory=list)
    loads_otherwise: dict[str, str] = field(default_factory=dict)
    merged: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] | None = None
    checked: str = "header"
    findings: list[Problem] = field(default_factory=list)
    norm: float | None = None
    table: list[dict[str, Any]] | None = None
    base: dict[str, Any] | None = None
    error: str | None = None
    measured: list[dict[str, Any]] | None = None  # of every module, for pages and pictures

    def json(self) -> dict[str, Any]:
        """Return this file's object in `--json`; keys are always present, null if not computed."""
        names = self.__dataclass_fields__.keys() - {"measured"}
        shown = {name: getattr(self, name) for name in self.__dataclass_fields__ if name in names}
        shown["findings"] = [
            {name: getattr(f, name) for name in ("severity", "code", "module", "message", "remedy")}
            for f in self.findings
        ]
        return shown


_NOTHING_KNOWN = Problem(
    "error",
    "nothing-known",
    None,
    "no tensor of the file belongs to an adapter or a checkpoint of a known kind",
    "`loramerge dialects` and `loramerge families` list the formats and models that can be read",
)


_NO_FAMILY = Problem(
    "note",
    "no-family",
    None,
    "these are the weights of a model, not an adapter, and its family is not known",
    "adapters with the same names and shapes can be baked into it",
)


@record
class InspectResult:
    """All files, in order."""

    files: list[Inspected]
    exit_code: int = 0
    all_metadata: bool = False

    def json(self) -> list[dict[str, Any]]:
        """Return the list that `--json` prints."""
        return [file.json() for file in self.files]


def inspect(parameters: Inspect, context: Context = Context()) -> InspectResult:
    """Run the verb. With a single file errors are raised; with several they are reported.

    Raises:
        LoramergeError: for a single file that cannot be read.
    """
    found = []
    code = 0
    things = [thing for name in parameters.files for thing in _things(name, context)]
    for thing in dict.fromkeys(things):
        try:
            found.append(_one(thing, parameters, context))
        except LoramergeError as error:
            if len(things) == 1:
                raise
            context.notify(Warn(f"{thing}: {error.problem}"))
            found.append(Inspected(str(thing), None, "unreadable", error=error.problem))
            code = code or error.exit_code
    if parameters.check and any(p.severity == "error" for f in found for p in f.findings):
        code = 5
    return InspectResult(found, code, parameters.metadata)


def _things(name: str, context: Context) -> list[Path | _InMemory]:
    """Return the files, or the adapter in memory, with a name."""
    known = context.known.get(name)
    if isinstance(known, Adapter):
        return [_InMemory(name, known)]
    if known is not None:
        return [known]
    return list(files_of(name, context.root))


@record(eq=False)
class _InMemory:
    """An adapter that a recipe computed, and its name there."""

    name: str
    adapter: Adapter

    def __str__(self) -> str:
        return self.name


def _one(path: Path | _InMemory, parameters: Inspect, context: Context) -> Inspected:
    if isinstance(path, _InMemory):
        found = inspect_adapter(path.adapter, parameters, context)
        found.path = path.name
        return found
    if (path / "model_index.json").is_file():
        return _checkpoint(path)
    if is_sharded(path) or (is_gguf(path) and not is_gguf_adapter(path)):
        return _checkpoint(path)
    try:
        adapter = load(path)
    except FormatError:
        if path.is_dir() and not is_adapter_folder(path):
            return _checkpoint(path)
        raise
    if adapter.only_replaces and not adapter.embeddings:
        with suppress(FamilyError):
            return _checkpoint(path)
    return inspect_adapter(adapter, parameters, context)


def predict(parameters: Inspect, context: Context = Context()) -> Prediction:
    """Predict what looking takes."""
    from loramerge.steps.prediction import predict_report

    adapters = []
    for thing in (t for name in parameters.files for t in _things(name, context)):
        adapter = thing.adapter if isinstance(thing, _InMemory) else load(thing)
        adapters.append(adapter)
    return predict_report(adapters)


VERB = Verb("inspect", Inspect, "report", inspect, predict)


def inspect_adapter(
    adapter: Adapter,
    parameters: Inspect = Inspect(files=()),
    context: Context = Context(),
) -> Inspected:
    """Inspect a loaded adapter; see `inspect`."""
    info = adapter.info
    seen = list(readings(adapter))
    account = info.account
    found = Inspected(
        path=adapter.label,
        size=info.size,
        what=_what(adapter),
        dialect=info.translated or " + ".join(_told(adapter)) or ("peft" if info.configs else None),
        family=info.detection.name,
        family_reason=info.detection.reason,
        trained_on=trained_on(info.metadata),
        kinds=adapter.kinds(),
        modules=len(adapter.deltas),
        components=adapter.components(),
        ranks=adapter.ranks(),
        alphas=adapter.alphas(),
        dtypes={DTYPES[name].word: n for name, n in adapter.dtypes().items()},
        embeddings=sorted(adapter.embeddings),
        unknown_keys=list(account.unknown),
        nearest_keys={key: near for key, near in account.unknown.items() if near},
        tags=tags(info.metadata),
        trigger_words=trigger_words(info.metadata),
        loads_in=[found.program.title for found in seen if found.whole],
        loads_otherwise={
            found.program.title: found.words(len(adapter.deltas))
            for found in seen
            if not found.whole
        },
        metadata=dict(sorted(info.metadata.items())),
        findings=list(info.problems),
    )
    found.findings += _of_one_network(adapter)
    found.findings += _computed_otherwise(adapter, seen)
    if parameters.hash and info.path is not None:
        found.hashes = _hashes(adapter)
    if not adapter.deltas and not adapter.embeddings and not info.problems:
        found.findings.append(_NOTHING_KNOWN)
    wanted = (parameters.deep, parameters.modules, parameters.spectrum, parameters.check)
    if any(wanted) or parameters.base is not None or context.details:
        _deep(found, adapter, parameters, context)
    if parameters.base is not None:
        _against(found, adapter, parameters.base, seen, context)
    return found


def _what(adapter: Adapter) -> str:
    """Return what a file is; a configuration names an adapter also where no module can be made."""
    if adapter.deltas or (adapter.info.configs and not adapter.embeddings):
        return "adapter"
    return "embeddings" if adapter.embeddings else "unknown"


def _told(adapter: Adapter) -> list[str]:
    """Return the dialects of an adapter, without those that only the ends of its keys suggest.

    Any program may end keys with `.lora_A`; of a model of no known family only a prefix tells whose they
    are.
    """
    info = adapter.info
    if info.detection.naming is not None or not info.stems:
        return list(info.dialects)
    return [
        name
        for name in info.dialects
        if not DIALECTS[name].heads
        or any(
            by.get(name, "").startswith(tuple(DIALECTS[name].heads)) for by in info.stems.values()
        )
    ]


def _of_one_network(adapter: Adapter) -> Iterator[Problem]:
    """Yield a note on an adapter whose name says which of a pipeline's two networks it is for."""
    if said := network_of(adapter):
        yield Problem(
            "note",
            "one-network",
            None,
            f"its name says that it is for {said}; its keys do not say it",
            "mix it with the file of the other network for an adapter of both",
        )


def _computed_otherwise(adapter: Adapter, seen: Sequence[Reading]) -> Iterator[Problem]:
    """Yield a problem for programs that compute a different change, with the advice that gives the
    trained one in all of them."""
    titles = [found.program.title for found in seen if found.mistakes_kinds]
    if titles:
        bound = any(delta.needs_base for delta in adapter.deltas.values())
        yield Problem(
            "note",
            "computed-otherwise",
            None,
            f"{listed(titles)} {'computes' if len(titles) == 1 else 'compute'} a different "
            "change from the trained one",
            f"loramerge convert --to-lora{' --base B' if bound else ''} gives the trained change",
        )


def _deep(found: Inspected, adapter: Adapter, parameters: Inspect, context: Context) -> None:
    from loramerge.algebra.health import examine

    spectra = parameters.spectrum or context.details
    report = examine(adapter, spectra=spectra, threads=context.threads, notify=context.notify)
    found.checked = "weights"
    found.findings += report.problems
    found.norm = report.norm
    found.measured = report.table
    if parameters.modules or parameters.spectrum:
        found.table = [
            {name: value for name, value in row.items() if name != "singular_values"}
            for row in report.table
        ]


def _against(
    found: Inspected, adapter: Adapter, base: str, seen: Sequence[Reading], context: Context
) -> None:
    """Add a verdict on whether the adapter works with a base, and how far programs are from it."""
    from loramerge.algebra.weights import Weight
    from loramerge.checkpoint import open_checkpoint
    from loramerge.steps.inputs import base_path
    from loramerge.stream.bake import survey
    from loramerge.stream.elsewhere import distances
    from loramerge.stream.plan import plan_bake

    checkpoint = open_checkpoint(base_path(base, context))
    found.base = {"path": str(checkpoint.path), "family": checkpoint.family_name}
    try:
        plan = plan_bake(checkpoint, [(adapter, Weight())], skip_missing=("all",))
    except LoramergeError as error:
        found.base |= {"works": False, "reason": error.problem, "matched": 0}
        return
    found.base["elsewhere"] = distances(adapter, checkpoint, seen)
    for title, off in found.base["elsewhere"].items():
        found.loads_otherwise[title] += f"; off by {off:.2g} of the trained change"
    survivals = survey(plan, threads=context.threads, notify=context.notify)
    asked = sum(s.asked for s in survivals)
    kept = sum(s.along for s in survivals) / asked if asked else 1.0
    weights = sum(s.base for s in survivals)
    total = len(adapter.deltas)
    matched = total - len(plan.skipped)
    by_name = ", by name, as no family is known" if checkpoint.is_unknown else ""
    reason = (
        f"{matched} of {total} modules fit{by_name}; {kept:.0%} of the change is kept after rounding "
        "to the base's type"
    )
    found.base |= {
        "works": bool(matched),
        "matched": matched,
        "modules": total,
        "skipped": plan.skipped,
        "change": (asked / weights) ** 0.5 if weights else None,
        "survives": kept,
        "reason": reason,
    }


def _hashes(adapter: Adapter) -> dict[str, str]:
    """Return the digests by which people and sites name a file."""
    from loramerge.adapter.source import open_source
    from loramerge.files.digest import tensors_sha256
    from loramerge.library.digests import digest_of, digest_of_files

    assert adapter.info.path is not None
    path = Path(adapter.info.path)
    source = open_source(path)
    whole = (
        digest_of(source.files[0])
        if len(source.files) == 1
        else digest_of_files(path if path.is_dir() else path.parent, source.files)
    )
    return {
        "sha256": whole,
        "autov2": whole[:10],
        "tensors_sha256": tensors_sha256(source.tensors),
    }


def _checkpoint(path: Path) -> Inspected:
    """Describe a base, since people point at those too."""
    from loramerge.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    dtypes: dict[str, int] = {}
    for file in checkpoint.files.weights:
        for tensor in file.weights().values():
            word = DTYPES[tensor.dtype].word
            dtypes[word] = dtypes.get(word, 0) + 1
    _, metadata = checkpoint.files.weights[0].open()
    modules = {module for module, _ in checkpoint.slots}
    components = {name: len(modules) for name in checkpoint.layouts}
    if len(components) > 1:  # the modules of one are not all named after it
        components = {n: sum(m.startswith(f"{n}.") for m in modules) for n in components}
    layouts = sorted(set(checkpoint.layouts.values()))
    return Inspected(
        path=str(path),
        size=checkpoint.size,
        what="checkpoint",
        dialect=f"layout {', '.join(layouts)}{', GGUF' if is_gguf(path) else ''}",
        family=None if checkpoint.is_unknown else checkpoint.family_name,
        family_reason=checkpoint.reason,
        modules=len(modules),
        components=components,
        dtypes=dtypes,
        merged=_merge(metadata),
        metadata=dict(metadata),
        findings=[_NO_FAMILY] if checkpoint.is_unknown else [],
    )


def _merge(metadata: Mapping[str, str]) -> str | None:
    """Return the merge that made a checkpoint in words, as other programs record it."""
    from loramerge.steps.lineage import lineage_of

    try:
        merge = lineage_of(metadata)
    except LoramergeError as error:
        return f"not readable: {error.problem}"
    return None if merge is None else merge.words
