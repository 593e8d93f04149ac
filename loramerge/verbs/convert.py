"""convert: adapters to another dialect or type, or some of their modules, proven equal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from loramerge.adapter import Adapter, Delta, Site
from loramerge.adapter.networks import by_name, marked
from loramerge.algebra.arrays import check_device
from loramerge.algebra.outcome import Combined, uncut
from loramerge.algebra.proof import Proof
from loramerge.algebra.terms import Term, naming
from loramerge.algebra.to_lora import check_to_lora, to_lora
from loramerge.algebra.weights import shown_number
from loramerge.errors import Setting, UsageError, listed
from loramerge.events import Note, Warn, ignore
from loramerge.families.components import COMPONENT_WORDS
from loramerge.files.dtypes import DTYPES
from loramerge.files.spool import spool_for
from loramerge.steps.adapters import AdapterResult, budget, whole_size, write_result
from loramerge.steps.batch import (
    FileParameters,
    FileWork,
    for_one_file,
    in_batch,
    one_by_one,
)
from loramerge.steps.batch_result import FilesResult
from loramerge.steps.outputs import Output, named_output, output_of
from loramerge.steps.parameters import Context, Doc, ForFiles, Verb
from loramerge.steps.prediction import Prediction, predict_adapter
from loramerge.steps.proving import prove_written
from loramerge.steps.references import Reference
from loramerge.steps.sizes import stand_in
from loramerge.steps.source import Source, open_source
from loramerge.steps.writing import (
    BaseParameter,
    OwnType,
    RankParameters,
    UnknownParameter,
    WriteParameters,
)

__all__ = [
    "VERB",
    "Convert",
    "ConvertFiles",
    "ConvertResult",
    "ConvertSettings",
    "compute_convert",
    "convert",
    "convert_files",
]

_EMBEDDINGS = "embeddings"  # the word for them in --keep and --drop


@dataclass(frozen=True, kw_only=True)
class ConvertSettings(RankParameters, BaseParameter, UnknownParameter, WriteParameters):
    """The parameters that say how adapters are converted, whether one or several."""

    dtype: OwnType = None
    to_lora: Annotated[
        bool,
        Doc(
            "Make every module an ordinary LoRA: exactly if it has a low-rank form, otherwise "
            "by the rank options, and the error is shown. Kinds that depend on the base need "
            "--base."
        ),
    ] = False
    keep: Annotated[
        tuple[str, ...],
        Doc(
            "Keep only these modules: a component (unet, te, text_encoder, …), `embeddings`, or a "
            "case-sensitive pattern of module names; may be repeated.",
            metavar="PATTERN",
        ),
    ] = ()
    drop: Annotated[
        tuple[str, ...],
        Doc("Leave these modules out, after --keep; may be repeated.", metavar="PATTERN"),
    ] = ()
    rescale: Annotated[
        float | None,
        Doc("Multiply the adapter's change (ΔW) by this number.", metavar="W"),
    ] = None

    def check(self) -> None:
        """Refuse parameters that contradict each other, before anything is opened.

        Raises:
            UsageError: naming the problem.
        """
        self.target(), self.float_type()
        if self.rule(1).truncates and not self.to_lora:
            raise UsageError(
                "convert lowers ranks only where it makes modules ordinary LoRA",
                hint=("give ", Setting("to_lora", True), ", or use resize, which converts as well"),
            )
        if self.rescale is not None and (not math.isfinite(self.rescale) or self.rescale == 0):
            raise UsageError(
                "rescale needs a finite number that is not 0",
                found=self.rescale,
                hint=(Setting("drop"), " leaves modules out"),
            )

    def label(self, dialect: str | None) -> str:
        """Return the part of a default output name that describes the conversion.

        Args:
            dialect: that is written, None where it is the adapter's own.
        """
        parts = [
            dialect,
            self.dtype and DTYPES[self.float_type() or ""].word,
            "lora" if self.to_lora else None,
            self.rank_label() or None,
            None if self.rescale is None else f"x{shown_number(self.rescale)}",
            *(f"only-{word}" for word in self.keep),
            *(f"no-{word}" for word in self.drop),
        ]
        return "-".join(part for part in parts if part) or "converted"


@dataclass(frozen=True, kw_only=True)
class Convert(ConvertSettings):
    """Write an adapter in another dialect or type, proven equal.

    Every tensor keeps its type unless another is asked for. The result is read back and compared
    with the expected change, module by module, before it gets its name.
    """

    adapter: Annotated[Reference, Doc("Adapter to convert.", ("ADAPTER",), completes="adapters")]


@dataclass(frozen=True, kw_only=True)
class ConvertFiles(ConvertSettings, FileParameters):
    """Write adapters in another dialect or type, proven equal.

    Every tensor keeps its type unless --dtype is given. Each result is read back and compared with
    the expected change, module by module. The largest difference is reported; a file that differs
    by more than one rounding of its type is not kept. Of several files, one that fails is reported,
    and the others are still converted. Run the command again to do only those that are missing.
    """

    def each_of(self, path: Path) -> list[tuple[str, Convert]]:
        """Return the parameters that convert one of the files."""
        return [("", for_one_file(self, ConvertSettings, Convert, path))]


@dataclass(kw_only=True, repr=False)
class ConvertResult(AdapterResult):
    """A converted adapter, and the comparison of its file with the expected change.

    Args:
        dropped: names of modules that were left out on demand.
        proof: None until it is written.
    """

    path: str
    kinds_before: dict[str, int]
    kinds: dict[str, int]
    dropped: list[str] = field(default_factory=list)
    proof: Proof | None = None

    def json(self) -> dict[str, Any]:
        proof = self.proof
        return {"path": self.path} | super().json() | {
            "size_before": self.size_before,
            "size_after": self.size,
            "kinds_before": self.kinds_before,
            "kinds_after": self.kinds,
            "dropped": self.dropped,
            "proof": None if proof is None else {
                "modules": proof.sites,
                "identical": proof.same,
                "largest_difference": proof.largest,
                "module": proof.site,
                "allowed": proof.allowed,
            },
        }  # fmt: skip


def convert(parameters: Convert, context: Context = Context()) -> ConvertResult:
    """Convert, write and prove.

    Raises:
        NotExpressible: if the dialect cannot store some modules of the adapter. NumericsError: if
        the written file differs from the expected change. LoramergeError: see
        `algebra.to_lora.to_lora` and `adapter.encode.encode`.
    """
    parameters.check()
    source = open_source(
        [parameters.adapter], parameters.base, context, skip_unknown=parameters.skip_unknown
    )
    output = _output(parameters, source).checked()
    result = _compute(source, parameters, output, context)
    return write_result(result, output, context, check=prove_written)


def output_path(parameters: Convert, context: Context = Context()) -> Path:
    """Return the path that `convert` writes to, from headers."""
    parameters.check()
    source = open_source(
        [parameters.adapter], parameters.base, context, skip_unknown=parameters.skip_unknown
    )
    return _output(parameters, source).place


def _output(parameters: Convert, source: Source) -> Output:
    dialect = output_of(parameters, source.adapters).dialect.name
    label = parameters.label(None if dialect == source.adapter.info.dialect else dialect)
    return named_output(parameters, source.adapters, f"{parameters.adapter.label}-{label}")


def compute_convert(parameters: Convert, context: Context = Context()) -> ConvertResult:
    """Convert without writing: the dialect counts only once it is written.

    Raises:
        LoramergeError: see `algebra.to_lora.to_lora`.
    """
    parameters.check()
    source = open_source(
        [parameters.adapter], parameters.base, context, skip_unknown=parameters.skip_unknown
    )
    return _compute(source, parameters, output_of(parameters, source.adapters), context)


def _compute(
    source: Source, parameters: Convert, output: Output, context: Context
) -> ConvertResult:
    adapter = source.adapter
    adapter.require_sound()
    rule = parameters.rule(whole_size([adapter], parameters) if parameters.max_size else 0)
    if rule.max_size is not None:
        parameters = replace(parameters, max_size=str(rule.max_size))
    chosen = source.changed(lambda one: _chosen(one, parameters, context))
    whole, made = (
        _rescaled(chosen.weighted(), parameters.rescale),
        source.step("convert", parameters),
    )
    combined: Combined
    if parameters.to_lora:
        sizes = None
        if rule.max_size is not None:
            sizes = budget(whole, whole.deltas, output, made, context)
        found, combined = to_lora(
            whole,
            rule,
            sizes=sizes,
            device=check_device(context.device),
            precise=output.precise,
            threads=context.threads,
            keep=spool_for(output.path),
            notify=context.notify,
        )
    else:
        found, combined = whole, uncut(whole)
    found = by_name(found)  # by which the written file is compared with it
    found = found.with_deltas(found.deltas, made=made, path=None, files=(), size=None)
    return ConvertResult(
        **AdapterResult.figures(found, combined),
        path=adapter.label,
        size_before=adapter.info.size,
        kinds_before=adapter.kinds(),
        kinds=found.kinds(),
        dropped=[site.name for site in adapter.deltas if site not in chosen.adapter.deltas],
    )


def _rescaled(adapter: Adapter, weight: float | None) -> Adapter:
    """Return the adapter with its change multiplied by a number."""
    if weight is None or weight == 1.0:
        return adapter
    deltas: dict[Site, Delta] = {}
    for site, delta in adapter.deltas.items():
        with naming(site, adapter.info.path):
            deltas[site] = delta.scaled(weight)
    return adapter.with_deltas(deltas)


def _chosen(adapter: Adapter, parameters: ConvertSettings, context: Context) -> Adapter:
    """Return the modules that `keep` and `drop` leave.

    Raises:
        UsageError: if none is left.
    """
    if not parameters.keep and not parameters.drop:
        return adapter
    deltas, embeddings = dict(adapter.deltas), dict(adapter.embeddings)
    for words, keeps in ((parameters.keep, True), (parameters.drop, False)):
        if words:
            hit = {site for site in deltas if any(_names(word, site) for word in words)}
            deltas = {site: d for site, d in deltas.items() if (site in hit) == keeps}
            embeddings = embeddings if (_EMBEDDINGS in words) == keeps else {}
    _tell_of_idle(adapter, (*parameters.keep, *parameters.drop), context)
    if not deltas:
        raise UsageError(
            "no module would be left",
            file=adapter.info.path,
            expected="modules of " + ", ".join(adapter.components()),
            found=", ".join(
                [f"keep {word}" for word in parameters.keep]
                + [f"drop {word}" for word in parameters.drop]
            ),
            hint="patterns are matched with whole names, such as "
            + next((site.modules[0] for site in adapter.deltas), "unet.conv_in"),
        )
    return marked(adapter, replace(adapter.with_deltas(deltas), embeddings=embeddings))


def _names(word: str, site: Site) -> bool:
    """Return whether a component's word or a pattern means a site."""
    if word in COMPONENT_WORDS:
        return site.component in COMPONENT_WORDS[word]
    if word == site.component:  # one that only this file has, such as `vae`
        return True
    return any(fnmatchcase(module, word) for module in site.modules)


def _tell_of_idle(adapter: Adapter, words: Sequence[str], context: Context) -> None:
    """Warn of words that match nothing: a pattern may be misspelt, a component absent."""
    idle = [
        word
        for word in words
        if word != _EMBEDDINGS and not any(_names(word, site) for site in adapter.deltas)
    ]
    absent = [word for word in idle if word in COMPONENT_WORDS]
    strange = [word for word in idle if word not in COMPONENT_WORDS]
    if absent:
        context.notify(Note(f"{adapter.label}: has no {listed(absent)}"))
    if strange:
        context.notify(Warn(f"{adapter.label}: no module is named {listed(strange)}"))


def predict(parameters: Convert, context: Context = Context()) -> Prediction:
    """Predict the result from headers."""
    source = open_source(
        [parameters.adapter], parameters.base, context, skip_unknown=parameters.skip_unknown
    )
    quiet = replace(context, notify=ignore)
    whole = source.changed(lambda one: _chosen(one, parameters, quiet)).weighted()
    rule = parameters.rule(whole_size(source.adapters, parameters) if parameters.max_size else 0)
    if parameters.to_lora:
        check_to_lora(whole, rule)
    terms = {
        site: [Term(_plain(delta, whole.dtype) if parameters.to_lora else delta)]
        for site, delta in whole.deltas.items()
    }
    made = source.step("convert", parameters)
    output = output_of(parameters, source.adapters)
    return predict_adapter(whole, terms, rule, output, made, context, keeps_types=True)


def _plain(delta: Delta, dtype: str) -> Delta:
    """Return a stand-in for the LoRA of a delta; a dense one may have full rank before it is cut."""
    if len(delta.shape) < 2:
        return delta
    most = min(delta.flat_shape)
    return stand_in(delta.shape, min(delta.rank or most, most), dtype)


_FIGURES = (
    "size_after", "dialect", "dtype", "modules", "ranks", "kinds_before", "kinds_after", "dropped",
    "relative_error", "norm_kept", "scale_applied", "worst", "left_out", "proof",
)  # fmt: skip


def convert_files(
    parameters: ConvertFiles, context: Context = Context()
) -> FilesResult[ConvertResult]:
    """Convert files. With a single one errors are raised; with several they are reported.

    Raises:
        UsageError: for options that cannot go together.
        LoramergeError: for a single file, see `convert`.
    """
    work = FileWork(one_by_one(convert), one_by_one(_compute), _FIGURES, prove_written)
    return in_batch(parameters, work, context)


VERB = Verb(
    "convert",
    Convert,
    "adapter",
    convert,
    predict,
    compute_convert,
    ForFiles(ConvertFiles, convert_files),
    uses_device=True,
    output_path=output_path,
)
