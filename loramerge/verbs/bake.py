"""bake: adapters into a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from loramerge import __version__
from loramerge.adapter import Adapter
from loramerge.adapter.load import load
from loramerge.adapter.source import open_source
from loramerge.algebra.compare import block_of
from loramerge.algebra.weights import COMPONENT_WORDS
from loramerge.checkpoint import Checkpoint, open_checkpoint
from loramerge.errors import FamilyError, FormatError, LoramergeError, UsageError, listed, nearest
from loramerge.events import Note, Warn
from loramerge.files.digest import PLACEHOLDER
from loramerge.files.dtypes import DTYPES, FLOATS
from loramerge.library.digests import digest_of, digest_of_files
from loramerge.library.lookup import find
from loramerge.library.references import Reference, parse_reference, with_weight_files
from loramerge.stream.bake import BakePlan, Survival, plan_bake
from loramerge.stream.bake import bake as bake_checkpoint
from loramerge.stream.drift import Drift, drift
from loramerge.verbs.inputs import open_adapter
from loramerge.verbs.outputs import checkpoint_output, default_name, sum_name
from loramerge.verbs.parameters import Context, Doc
from loramerge.verbs.writing import WeightParameters, float_type

__all__ = ["Bake", "BakeResult", "bake"]

_WEAK = 0.9  # share of the change below which the report names remedies
_RECEIPT = "loramerge.bake"


@dataclass(frozen=True, kw_only=True)
class Bake(WeightParameters):
    """Add adapters to a checkpoint; the result has the same layout as the base.

    Tensors that no adapter touches stay byte-identical. The report says how much of the requested
    change survived rounding to the base's type.
    """

    base: Annotated[
        str,
        Doc(
            "Checkpoint: a file, a diffusers folder, or a registered name.",
            ("--base", "-b"),
            "BASE",
            "bases",
        ),
    ]
    adapters: Annotated[
        tuple[str, ...], Doc("Adapters with weights: NAME:0.8.", ("ADAPTER",), None, "adapters")
    ] = ()
    lora: Annotated[
        tuple[str, ...],
        Doc("An adapter with its weight, as NAME:0.8; may be repeated.", ("--lora", "-l"),
            "ADAPTER", "adapters"),
    ] = ()  # fmt: skip
    output: Annotated[
        str | None,
        Doc("File or folder to write [default: BASE+ADAPTER].", ("--output", "-o"), "PATH"),
    ] = None
    skip_missing: Annotated[
        tuple[str, ...],
        Doc(
            "Leave out adapter modules that the base lacks, in this component (unet, text_encoder, "
            "…) or in `all`; may be repeated.",
            metavar="COMPONENT",
        ),
    ] = ()
    trained_on: Annotated[
        str | None,
        Doc(
            "Base the adapter was trained on: also report how far BASE is from it where the "
            "adapter acts.",
            metavar="BASE",
            completes="bases",
        ),
    ] = None
    rounding: Annotated[
        Literal["nearest", "stochastic"],
        Doc(
            "How values are rounded to the base's type. Stochastic keeps weak adapters in "
            "expectation, at the price of noise."
        ),
    ] = "nearest"
    seed: Annotated[int, Ge(0), Doc("Seed of stochastic rounding.")] = 0
    dtype: Annotated[
        str | None,
        Doc("Give all floating tensors this type [default: as in the base].", metavar="TYPE"),
    ] = None
    dry_run: Annotated[bool, Doc("Say what would change, and write nothing.")] = False
    force: Annotated[bool, Doc("Replace an existing output.", ("--force", "-f"))] = False


@dataclass
class BakeResult:
    """What was baked, and how much of it survived.

    Args:
        survived: ⟨ΔW_written, ΔW_asked⟩ / ‖ΔW_asked‖² over all modules; None for a dry run.
        change: ‖ΔW‖ / ‖W‖ over the touched modules.
        drift: block → [relative distance, subspace moved] where `trained_on` was given.
    """

    output: str
    dry_run: bool
    base: str
    family: str
    layouts: dict[str, str]
    modules: int
    tensors: int
    adapters: list[dict[str, Any]]
    skipped: list[str]
    notes: list[str]
    touched: list[dict[str, Any]] = field(default_factory=list)
    size: int | None = None
    survived: float | None = None
    relative_error: float | None = None
    change: float | None = None
    worst: tuple[str, float] | None = None
    drift: dict[str, tuple[float, float]] | None = None
    drift_total: tuple[float, float] | None = None

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        worst = self.worst
        norm_kept = None
        if self.relative_error is not None:
            norm_kept = math.sqrt(max(0.0, 1.0 - self.relative_error**2))
        return {
            "outputs": [] if self.dry_run else [self.output],
            "output": self.output,
            "dry_run": self.dry_run,
            "base": self.base,
            "family": self.family,
            "layouts": self.layouts,
            "modules": self.modules,
            "tensors": self.tensors,
            "adapters": self.adapters,
            "skipped": self.skipped,
            "notes": self.notes,
            "size": self.size,
            "survived": self.survived,
            "relative_error": self.relative_error,
            "norm_kept": norm_kept,
            "scale_applied": 1.0,
            "change": self.change,
            "worst": {"module": worst[0], "relative_error": worst[1]} if worst else None,
            "drift": self.drift,
            "drift_total": self.drift_total,
            "touched": self.touched,
        }


def bake(parameters: Bake, context: Context = Context()) -> BakeResult:
    """Run the verb.

    Raises:
        LoramergeError: see `stream.bake.plan_bake` and `stream.bake.bake`.
    """
    texts = (*parameters.adapters, *parameters.lora)
    references = with_weight_files([parse_reference(text) for text in texts], parameters.weights)
    if not references and parameters.dtype is None:
        raise UsageError("bake needs an adapter", hint="--lora NAME:0.8")
    dtype, skip = float_type(parameters.dtype, FLOATS), _skipped(parameters.skip_missing)
    checkpoint = _open_base(parameters.base)
    output = _output(parameters, checkpoint, references)
    folder = checkpoint.files.root is not None
    checkpoint_output(output, folder=folder, force=parameters.force or parameters.dry_run)
    adapters = [open_adapter(reference.path(), context.notify) for reference in references]
    pairs = [(a, r.weight) for a, r in zip(adapters, references, strict=True)]
    plan = plan_bake(
        checkpoint,
        pairs,
        skip_missing=skip,
        dtype=dtype,
    )
    result = BakeResult(
        str(output),
        parameters.dry_run,
        str(checkpoint.path),
        checkpoint.family_name,
        checkpoint.layouts,
        len(plan.modules),
        plan.tensors,
        [
            {"path": a.info.path, "weight": r.written}
            for a, r in zip(adapters, references, strict=True)
        ],
        plan.skipped,
        list(plan.notes),
    )
    if plan.skipped:
        context.notify(Warn(f"left out, because the base lacks them: {listed(plan.skipped, 5)}"))
    for note in plan.notes:
        context.notify(Note(note))
    _warn_of_embeddings(adapters, context)
    if parameters.trained_on is not None:
        _add_drift(result, adapters, checkpoint, parameters.trained_on, context)
    if parameters.dry_run:
        result.touched = _touched(plan)
        return result
    receipts = _receipts(adapters, references)
    _warn_of_double_bake(checkpoint, receipts, context)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(_late, checkpoint, receipts, parameters)
        metadata = {_RECEIPT: _receipt(checkpoint, PLACEHOLDER, receipts, parameters)}
        survivals = _written(plan, output, parameters, metadata, late, context)
    _add_survival(result, survivals, plan, context)
    result.size = _size(output)
    return result


def _open_base(name: str) -> Checkpoint:
    """Open the base; an adapter in its place is called one."""
    path = find(name, "bases")
    try:
        return open_checkpoint(path)
    except FamilyError:
        try:
            adapter = bool(load(path).deltas)
        except LoramergeError:
            adapter = False
        if not adapter:
            raise
        raise FormatError(
            "this is an adapter, and --base needs a checkpoint",
            file=path,
            hint="loramerge bake --base CHECKPOINT --lora ADAPTER",
        ) from None


def _skipped(words: tuple[str, ...]) -> list[str]:
    """Return the components that may lack modules.

    Raises:
        UsageError: if a word is no component.
    """
    found: list[str] = []
    for word in words:
        if word != "all" and word not in COMPONENT_WORDS:
            close = nearest(word, COMPONENT_WORDS)
            raise UsageError(
                f"--skip-missing: {word!r} is no component",
                expected=", ".join(("all", *COMPONENT_WORDS)),
                hint=f"did you mean {close}?" if close else None,
            )
        found += COMPONENT_WORDS.get(word, (word,))
    return found


def _output(parameters: Bake, checkpoint: Checkpoint, references: list[Reference]) -> Path:
    if parameters.output is not None:
        return Path(parameters.output)
    name = Path(parameters.base.replace("\\", "/"))
    label = name.stem if name.suffix in (".safetensors", ".ckpt") else name.name or "base"
    added = sum_name(references)
    stem = f"{label}+{added}" if added else f"{label}-{parameters.dtype}"
    return default_name(stem, "" if checkpoint.files.root is not None else ".safetensors")


def _written(
    plan: BakePlan,
    output: Path,
    parameters: Bake,
    metadata: Mapping[str, str],
    late: Future[Mapping[str, str]],
    context: Context,
) -> list[Survival]:
    return bake_checkpoint(
        plan,
        output,
        force=parameters.force,
        seed=parameters.seed if parameters.rounding == "stochastic" else None,
        metadata=metadata,
        late=late,
        threads=context.threads,
        notify=context.notify,
    )


def _receipts(adapters: list[Adapter], references: list[Reference]) -> list[dict[str, Any]]:
    """Say which adapters go in: names without folders, weights, digests."""
    receipts = []
    for adapter, reference in zip(adapters, references, strict=True):
        assert adapter.info.path is not None
        path = Path(adapter.info.path)
        files = open_source(path).files
        digest = digest_of(files[0]) if len(files) == 1 else digest_of_files(path, files)
        name = _encodable(path.name)
        receipts.append({"name": name, "sha256": digest, "weight": reference.weight.text()})
    return receipts


def _encodable(name: str) -> str:
    """Return a file name that any header can hold; bytes that are no Unicode become `?`."""
    return name.encode("utf-8", "replace").decode()


def _receipt(
    checkpoint: Checkpoint, digest: str, receipts: list[dict[str, Any]], parameters: Bake
) -> str:
    content: dict[str, Any] = {
        "version": __version__,
        "base": {"name": _encodable(checkpoint.path.name), "sha256": digest},
        "adapters": receipts,
    }
    if parameters.rounding == "stochastic":
        content["rounding"] = {"stochastic": parameters.seed}
    return json.dumps(content, sort_keys=True, ensure_ascii=False)


def _late(
    checkpoint: Checkpoint, receipts: list[dict[str, Any]], parameters: Bake
) -> Mapping[str, str]:
    """Compute the base's digest while the bake runs; it has the placeholder's length."""
    files = [file.path for file in checkpoint.files.weights]
    root = checkpoint.files.root
    digest = digest_of(files[0]) if root is None else digest_of_files(root, files)
    return {_RECEIPT: _receipt(checkpoint, digest, receipts, parameters)}


def _warn_of_double_bake(
    checkpoint: Checkpoint, receipts: list[dict[str, Any]], context: Context
) -> None:
    """Warn where the base says that one of the adapters is in it already."""
    _, metadata = checkpoint.files.weights[0].open()
    try:
        before = json.loads(metadata.get(_RECEIPT, "{}")).get("adapters", [])
        digests = {entry["sha256"] for entry in before}
    except (ValueError, AttributeError, KeyError, TypeError):
        return
    for receipt in receipts:
        if receipt["sha256"] in digests:
            context.notify(Warn(f"{receipt['name']} is baked into this base already"))


def _warn_of_embeddings(adapters: list[Adapter], context: Context) -> None:
    for adapter in adapters:
        if adapter.embeddings:
            names = listed(list(adapter.embeddings), 4)
            context.notify(
                Note(f"{adapter.label}: embeddings are not part of a checkpoint: {names}")
            )


def _touched(plan: BakePlan) -> list[dict[str, Any]]:
    return [
        {
            "file": str(file.relative),
            "tensor": name,
            "module": edit.site.name,
            "rows": list(edit.place.rows),
            "shape": list(edit.place.shape),
            "dtype": DTYPES[edit.place.tensor.dtype].word,
            "adapters": len(edit.deltas),
        }
        for file, tensors in plan.edits.items()
        for name, edits in tensors.items()
        for edit in edits
    ]


def _add_survival(
    result: BakeResult, survivals: list[Survival], plan: BakePlan, context: Context
) -> None:
    asked = math.fsum(s.asked for s in survivals)
    if asked == 0:
        return
    base = math.fsum(s.base for s in survivals)
    result.survived = math.fsum(s.along for s in survivals) / asked
    result.relative_error = math.sqrt(math.fsum(s.error for s in survivals) / asked)
    result.change = math.sqrt(asked / base) if base > 0 else None
    worst = max((s for s in survivals if s.asked > 0), key=lambda s: s.relative_error)
    result.worst = (worst.module, worst.relative_error)
    result.touched = [
        {
            "module": s.module,
            "tensor": s.tensor,
            "survived": s.survived,
            "relative_error": s.relative_error,
            "change": math.sqrt(s.asked / s.base) if s.base > 0 else None,
        }
        for s in survivals
    ]
    if result.survived < _WEAK:
        types = sorted(
            {DTYPES[e.place.tensor.dtype].word for f in plan.edits.values() for es in f.values()
             for e in es}
        )  # fmt: skip
        context.notify(
            Warn(
                f"only {result.survived:.0%} of the change survived rounding to {', '.join(types)}; "
                "--rounding stochastic keeps it in expectation, --dtype float32 (or bfloat16 for "
                "float8 bases) keeps it exactly"
            )
        )


def _add_drift(
    result: BakeResult,
    adapters: list[Adapter],
    checkpoint: Checkpoint,
    trained_on: str,
    context: Context,
) -> None:
    other = open_checkpoint(find(trained_on, "bases"))
    found = drift(adapters, other, checkpoint, threads=context.threads, notify=context.notify)
    if not found:
        raise UsageError(
            "there is nothing to compare the bases by",
            hint="--trained-on needs adapters with low-rank modules that both bases have",
        )
    zero = Drift(0.0, 0.0, 0.0, 0.0)
    blocks: dict[str, Drift] = {}
    for site, one in found.items():
        name = block_of(site)
        blocks[name] = blocks.get(name, zero) + one
    result.drift = {name: (d.distance, d.subspace) for name, d in blocks.items()}
    total = sum(found.values(), zero)
    result.drift_total = (total.distance, total.subspace)


def _size(output: Path) -> int:
    if output.is_file():
        return output.stat().st_size
    return sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
