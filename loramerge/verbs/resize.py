"""resize: re-rank adapters by SVD, one or a folder full."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from loramerge.adapter import Adapter
from loramerge.adapter.encode import choose_dialect
from loramerge.adapter.sites import for_dialect, without_values
from loramerge.algebra.arrays import check_device
from loramerge.algebra.resize import resize as resize_adapter
from loramerge.algebra.terms import require_base_free
from loramerge.algebra.weights import Weight
from loramerge.errors import LoramergeError, UsageError
from loramerge.events import Note, Warn
from loramerge.steps.adapters import AdapterResult, budget, target_of, whole_size, written
from loramerge.steps.batch import FileParameters, FilesResult, FileWork, in_batch
from loramerge.steps.inputs import adapter_of, at_base, open_base, weighted
from loramerge.steps.parameters import Context, Doc, Verb
from loramerge.steps.prediction import Prediction, predict_adapter
from loramerge.steps.provenance import Made, base_input, input_of, step_of
from loramerge.steps.references import Reference
from loramerge.steps.writing import BaseParameter, RankParameters, WriteParameters

__all__ = [
    "VERB",
    "Resize",
    "ResizeFiles",
    "ResizeResult",
    "resize",
    "resize_files",
    "resized",
]

_LITTLE = 0.5  # share of the norm below which a resize is worth a warning


@dataclass(frozen=True, kw_only=True)
class _How(RankParameters, BaseParameter, WriteParameters):
    """What a resize of one adapter and of many files have in common."""

    def check(self) -> None:
        """Refuse parameters that cannot be meant, before anything is opened.

        Raises:
            UsageError: naming what is wrong.
        """
        self.target(), self.float_type()
        if not self.rule(1).truncates:
            raise UsageError(
                "resize needs to know what to keep",
                hint="give rank (--rank 8), or energy, ratio, cumulative, max_size, max_error",
            )


@dataclass(frozen=True, kw_only=True)
class Resize(_How):
    """Re-rank an adapter by SVD.

    Every module gets the best approximation of its new rank, and the report says what that lost.
    """

    adapter: Annotated[Reference, Doc("Adapter to re-rank.", ("ADAPTER",), completes="adapters")]


@dataclass(frozen=True, kw_only=True)
class ResizeFiles(_How, FileParameters):
    """Re-rank adapters by SVD.

    Every module gets the best approximation of its new rank, and the report says what that lost.
    With several files, a file that fails or would not get smaller is reported and the rest goes on;
    running again does only what is missing.
    """

    def of(self, path: Path) -> Resize:
        """Return the parameters that resize one of the files."""
        shared = {f.name: getattr(self, f.name) for f in fields(_How)}
        return Resize(adapter=Reference(str(path)), **shared)


@dataclass(kw_only=True)
class ResizeResult(AdapterResult):
    """What was re-ranked, and what that lost."""

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
    adapter = adapter_of(parameters.adapter, context)
    stem = f"{parameters.adapter.label}-{parameters.rank_label()}"
    target = target_of(parameters, [adapter], stem)
    return written(_resized(adapter, parameters, context), target, context)


def resized(parameters: Resize, context: Context = Context()) -> ResizeResult:
    """Re-rank without writing.

    Raises:
        LoramergeError: see `algebra.resize.resize`.
    """
    parameters.check()
    return _resized(adapter_of(parameters.adapter, context), parameters, context)


def _source(adapter: Adapter, parameters: Resize, context: Context) -> tuple[Adapter, Made | None]:
    """Return what is re-ranked, weighted and at the base if there is one, and the step."""
    given = {("adapters", parameters.adapter.name): input_of(adapter)}
    base = None
    if parameters.base is not None:
        base = open_base(parameters.base, context)
        given["bases", parameters.base] = base_input(base)
    source = weighted(at_base(adapter, base), parameters.adapter.weight)
    return source, step_of("resize", parameters, given)


def _resized(adapter: Adapter, parameters: Resize, context: Context) -> ResizeResult:
    rule = parameters.rule(whole_size([adapter], parameters) if parameters.max_size else 0)
    if rule.max_size is not None:
        parameters = replace(parameters, max_size=str(rule.max_size))
    source, made = _source(adapter, parameters, context)
    sizes = None
    target = choose_dialect(parameters.target(), [adapter])
    if rule.max_size is not None:
        source = for_dialect(source, target)
        frame = source.with_deltas({}, dtype=adapter.dtype)
        sizes = budget([adapter], frame, source.deltas, parameters, made, context)
    try:
        small, combined = resize_adapter(
            source,
            rule,
            sizes=sizes,
            target=target,
            device=check_device(context.device),
            precise=parameters.float_type() == "F64",
            threads=context.threads,
            notify=context.notify,
        )
    except LoramergeError as error:
        error.file = error.file or adapter.info.path
        raise
    if made is not None:
        small.made_by(made)
    if not combined.lossy:
        name = parameters.adapter.label
        context.notify(Note(f"{name}: nothing was cut; its ranks are not above what is kept"))
    elif combined.norm_kept < _LITTLE:
        gone = f" and {len(combined.left_out)} modules are gone" if combined.left_out else ""
        context.notify(
            Warn(
                f"{parameters.adapter.label}: only {combined.norm_kept:.0%} of the norm is kept"
                f"{gone}; keep more, or write fewer bytes for each direction with --dtype float16 "
                "or --to kohya"
            )
        )
    return ResizeResult(
        **AdapterResult.figures(small, combined),
        path=adapter.label,
        size_before=adapter.info.size,
        ranks_before=adapter.ranks(),
    )


def predict(parameters: Resize, context: Context = Context()) -> Prediction:
    """Foretell the result from headers."""
    adapter = adapter_of(parameters.adapter, context)
    target = choose_dialect(parameters.target(), [adapter])
    source, made = _source(without_values(adapter, target), parameters, context)
    rule = parameters.rule(whole_size([adapter], parameters))
    require_base_free([(source, Weight())], rule)
    source = for_dialect(source, target)
    terms = {site: [delta] for site, delta in source.deltas.items()}
    frame = source.with_deltas({}, dtype=adapter.dtype)
    return predict_adapter([adapter], frame, terms, rule, parameters, made, context)


VERB = Verb("resize", Resize, "adapter", resize, predict, resized)


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
    work = FileWork(parameters.of, resize, _resized, _FIGURES, unwanted=_not_smaller)
    return in_batch(parameters, work, context)
