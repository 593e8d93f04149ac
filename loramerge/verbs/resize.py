"""resize: re-rank adapters by SVD, one or a folder full."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from loramerge.adapter.sites import for_dialect, without_values
from loramerge.algebra.arrays import check_device
from loramerge.algebra.outcome import Combined
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.resize import resize as resize_adapter
from loramerge.algebra.terms import Term, require_base_free
from loramerge.algebra.weights import Weight
from loramerge.errors import LoramergeError, Setting, UsageError
from loramerge.events import Note, Warn
from loramerge.steps.adapters import AdapterResult, budget, whole_size, write_result
from loramerge.steps.batch import FileParameters, FilesResult, FileWork, in_batch
from loramerge.steps.outputs import Output, output_of
from loramerge.steps.parameters import Context, Doc, ForFiles, Verb
from loramerge.steps.prediction import Prediction, predict_adapter
from loramerge.steps.references import Reference
from loramerge.steps.source import Source, open_source
from loramerge.steps.writing import BaseParameter, RankParameters, UnknownParameter, WriteParameters

__all__ = [
    "VERB",
    "Resize",
    "ResizeFiles",
    "ResizeResult",
    "ResizeSettings",
    "compute_resize",
    "resize",
    "resize_files",
]

_OTHERS = ("energy", "ratio", "cumulative", "max_size")
_CRITERIA = (
    *(part for name in _OTHERS for part in (", ", Setting(name))),
    " or ",
    Setting("max_error"),
)
_LITTLE = 0.5  # share of the norm below which a resize is worth a warning


@dataclass(frozen=True, kw_only=True)
class ResizeSettings(RankParameters, BaseParameter, UnknownParameter, WriteParameters):
    """The parameters that say how adapters are re-ranked, whether one or several."""

    def check(self) -> None:
        """Refuse parameters that contradict each other, before anything is opened.

        Raises:
            UsageError: naming the problem.
        """
        self.target(), self.float_type()
        if not self.rule(1).truncates:
            raise UsageError(
                "resize needs a rank option",
                hint=("give ", Setting("rank", 8), *_CRITERIA),
            )


@dataclass(frozen=True, kw_only=True)
class Resize(ResizeSettings):
    """Re-rank an adapter by SVD.

    Every module gets the best approximation of its new rank, and the report shows the error.
    """

    adapter: Annotated[Reference, Doc("Adapter to re-rank.", ("ADAPTER",), completes="adapters")]


@dataclass(frozen=True, kw_only=True)
class ResizeFiles(ResizeSettings, FileParameters):
    """Re-rank adapters by SVD.

    Every module gets the best approximation of its new rank, and the report shows the error. Of
    several files, one that fails or would not get smaller is reported, and the others are still
    resized. Run the command again to do only those that are missing.
    """

    copy_rest: Annotated[
        bool,
        Doc("With --out-dir: copy files that would not get smaller, byte for byte."),
    ] = False

    def check(self) -> None:
        super().check()
        if self.copy_rest and self.out_dir is None:
            raise UsageError("copies need a folder", hint=("give ", Setting("out_dir", "FOLDER")))

    def of(self, path: Path) -> Resize:
        """Return the parameters that resize one of the files."""
        shared = {f.name: getattr(self, f.name) for f in fields(ResizeSettings)}
        return Resize(adapter=Reference(str(path)), **shared)


@dataclass(kw_only=True, repr=False)
class ResizeResult(AdapterResult):
    """A re-ranked adapter and its error."""

    path: str
    ranks_before: dict[int, int]

    def json(self) -> dict[str, Any]:
        return {"path": self.path} | super().json() | {
            "size_before": self.size_before,
            "size_after": self.size,
            "ranks_before": self.ranks_before,
            "ranks_after": self.ranks,
        }  # fmt: skip


def resize(parameters: Resize, context: Context = Context()) -> ResizeResult:
    """Re-rank and write.

    Raises:
        LoramergeError: see `algebra.resize.resize` and `adapter.encode.encode`.
    """
    parameters.check()
    source = open_source(
        [parameters.adapter], parameters.base, context, skip_unknown=parameters.skip_unknown
    )
    stem = f"{parameters.adapter.label}-{parameters.rank_label()}"
    output = output_of(parameters, source.adapters, stem)
    return write_result(_compute(source, parameters, output, context), output, context)


def compute_resize(parameters: Resize, context: Context = Context()) -> ResizeResult:
    """Re-rank without writing.

    Raises:
        LoramergeError: see `algebra.resize.resize`.
    """
    parameters.check()
    source = open_source(
        [parameters.adapter], parameters.base, context, skip_unknown=parameters.skip_unknown
    )
    return _compute(source, parameters, output_of(parameters, source.adapters), context)


def _compute(source: Source, parameters: Resize, output: Output, context: Context) -> ResizeResult:
    adapter = source.adapter
    rule = parameters.rule(whole_size([adapter], parameters) if parameters.max_size else 0)
    if rule.max_size is not None:
        parameters = replace(parameters, max_size=str(rule.max_size))
    whole, made = source.weighted(), source.step("resize", parameters)
    sizes = None
    if rule.max_size is not None:
        whole = for_dialect(whole, output.dialect)
        frame = whole.with_deltas({}, dtype=adapter.dtype)
        sizes = budget(frame, whole.deltas, output, made, context)
    try:
        small, combined = resize_adapter(
            whole,
            rule,
            sizes=sizes,
            target=output.dialect,
            device=check_device(context.device),
            precise=output.precise,
            threads=context.threads,
            notify=context.notify,
        )
    except LoramergeError as error:
        error.file = error.file or adapter.info.path
        raise
    if made is not None:
        small = small.with_deltas(small.deltas, made=made)
    _report_loss(parameters.adapter.label, combined, rule, context)
    return ResizeResult(
        **AdapterResult.figures(small, combined),
        path=adapter.label,
        size_before=adapter.info.size,
        ranks_before=adapter.ranks(),
    )


def _report_loss(name: str, combined: Combined, rule: RankRule, context: Context) -> None:
    """Note that nothing was lost, or warn that little is left."""
    if not combined.lossy:
        kept = "the ranks to keep" if rule.rank is None else f"rank {rule.rank}"
        context.notify(Note(f"{name}: already at or below {kept}"))
    elif combined.norm_kept < _LITTLE:
        count = len(combined.left_out)
        gone = f", and {count} {'module is' if count == 1 else 'modules are'} gone" if count else ""
        context.notify(
            Warn(
                (
                    f"{name}: only {combined.norm_kept:.0%} of the norm is kept{gone}; raise the "
                    "limit, or store each rank in fewer bytes with ",
                    Setting("dtype", "float16"),
                    " or ",
                    Setting("to", "kohya"),
                )
            )
        )


def predict(parameters: Resize, context: Context = Context()) -> Prediction:
    """Predict the result from headers."""
    source = open_source(
        [parameters.adapter], parameters.base, context, skip_unknown=parameters.skip_unknown
    )
    adapter, output = source.adapter, output_of(parameters, source.adapters)
    whole = source.changed(lambda one: without_values(one, output.dialect)).weighted()
    rule = parameters.rule(whole_size([adapter], parameters))
    require_base_free([(whole, Weight())], rule)
    whole = for_dialect(whole, output.dialect)
    terms = {site: [Term(delta)] for site, delta in whole.deltas.items()}
    frame = whole.with_deltas({}, dtype=adapter.dtype)
    return predict_adapter(frame, terms, rule, output, source.step("resize", parameters), context)


_FIGURES = (
    "size_after", "dialect", "dtype", "ranks_before", "ranks_after", "relative_error", "norm_kept",
    "scale_applied", "worst", "left_out",
)  # fmt: skip


def _not_smaller(size: int, before: int) -> str | None:
    return "the result would not be smaller" if size >= before else None


def resize_files(
    parameters: ResizeFiles, context: Context = Context()
) -> FilesResult[ResizeResult]:
    """Resize files. With a single one errors are raised; with several they are reported.

    Raises:
        UsageError: for options that cannot go together.
        LoramergeError: for a single file, see `resize`.
    """
    work = FileWork(
        resize, _compute, _FIGURES, unwanted=_not_smaller, copy_rest=parameters.copy_rest
    )
    return in_batch(parameters, work, context)


VERB = Verb(
    "resize",
    Resize,
    "adapter",
    resize,
    predict,
    compute_resize,
    ForFiles(ResizeFiles, resize_files),
    uses_device=True,
)
