"""Re-rank adapters: open the file and what it is compared with, cut, and write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loramerge.adapter.sites import for_dialect, without_values
from loramerge.algebra.arrays import check_device
from loramerge.algebra.budget import Cut
from loramerge.algebra.outcome import Combined
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.resize import resize_each as resize_adapter
from loramerge.algebra.terms import Term, require_base_free
from loramerge.algebra.weights import Weight
from loramerge.errors import LoramergeError, Setting
from loramerge.events import Note, Warn
from loramerge.files.spool import spool_for
from loramerge.steps.adapters import AdapterResult, budget, whole_size, write_result
from loramerge.steps.batch import FileWork, in_batch
from loramerge.steps.batch_result import FilesResult
from loramerge.steps.outputs import Output, named_output, output_of
from loramerge.steps.parameters import Context, ForFiles, Verb
from loramerge.steps.prediction import Prediction, predict_adapter
from loramerge.steps.source import Source, open_source
from loramerge.verbs.resize.compared import Compared
from loramerge.verbs.resize.curve import CurveResult, curve_of
from loramerge.verbs.resize.parameters import Resize, ResizeFiles

__all__ = [
    "VERB",
    "ResizeResult",
    "compute_each",
    "compute_resize",
    "resize",
    "resize_each",
    "resize_files",
]

_LITTLE = 0.5  # share of the norm below which a resize is worth a warning


@dataclass(kw_only=True, repr=False)
class ResizeResult(AdapterResult):
    """A re-ranked adapter and its error.

    Args:
        ingredients: of a fair result, each adapter with the share of its norm that is lost.
        error_at_base: relative error with every module divided by ‖W‖ of a base, None without one.
    """

    path: str
    ranks_before: dict[int, int]
    ingredients: list[dict[str, Any]] = field(default_factory=list)
    error_at_base: float | None = None

    def json(self) -> dict[str, Any]:
        return {"path": self.path} | super().json() | {
            "size_before": self.size_before,
            "size_after": self.size,
            "ranks_before": self.ranks_before,
            "ranks_after": self.ranks,
            **({"ingredients": self.ingredients} if self.ingredients else {}),
            **({} if self.error_at_base is None else {"error_at_base": self.error_at_base}),
        }  # fmt: skip


def resize(parameters: Resize, context: Context = Context()) -> ResizeResult:
    """Re-rank and write.

    Raises:
        LoramergeError: see `algebra.resize.resize` and `adapter.encode.encode`.
    """
    (found,) = resize_each([parameters], context)
    return found


def resize_each(several: Sequence[Resize], context: Context = Context()) -> list[ResizeResult]:
    """Re-rank one adapter in several ways, and write each result as `resize` does.

    Args:
        several: parameters that differ in ranks, sizes and outputs alone.
    """
    for one in several:
        one.check()
    source = _opened(several[0], context)
    todo = [(one, _output(one, source).checked()) for one in several]
    results = _compute(source, todo, context)
    return [
        write_result(result, output, context)
        for result, (_, output) in zip(results, todo, strict=True)
    ]


def output_path(parameters: Resize, context: Context = Context()) -> Path:
    """Return the path that `resize` writes to, from headers."""
    parameters.check()
    return _output(parameters, _opened(parameters, context)).place


def _output(parameters: Resize, source: Source) -> Output:
    stem = f"{parameters.adapter.label}-{parameters.rank_label()}"
    return named_output(parameters, source.adapters, stem)


def compute_resize(parameters: Resize, context: Context = Context()) -> ResizeResult:
    """Re-rank without writing.

    Raises:
        LoramergeError: see `algebra.resize.resize`.
    """
    (found,) = compute_each([parameters], context)
    return found


def compute_each(several: Sequence[Resize], context: Context = Context()) -> list[ResizeResult]:
    """Re-rank one adapter in several ways without writing; see `resize_each`."""
    for one in several:
        one.check()
    source = _opened(several[0], context)
    return _compute(source, [(one, output_of(one, source.adapters)) for one in several], context)


def _opened(parameters: Resize, context: Context) -> Source:
    return open_source(
        [parameters.adapter], parameters.base, context, skip_unknown=parameters.skip_unknown
    )


def _compute(
    source: Source, todo: Sequence[tuple[Resize, Output]], context: Context
) -> list[ResizeResult]:
    """Return the results of parameters that differ in ranks and sizes alone."""
    adapter = source.adapter
    first, output = todo[0]
    whole = source.weighted()
    compared = Compared.of(first, source, whole, output, context)
    source = compared.named(source)
    cuts, steps = [], []
    for one, target in todo:
        rule = one.rule(whole_size([adapter], one) if one.max_size else 0)
        one = replace(one, ingredient=compared.references)
        if rule.max_size is not None:
            one = replace(one, max_size=str(rule.max_size))
        made, sizes = source.step("resize", one), None
        if rule.max_size is not None:
            whole = for_dialect(whole, target.dialect)
            frame = whole.with_deltas({}, dtype=adapter.dtype)
            stays = not one.fair
            sizes = budget(frame, whole.deltas, target, made, context, stays=stays)
        cuts.append(Cut(rule, sizes, compared.norms))
        steps.append(made)
    try:
        found = resize_adapter(
            whole,
            cuts,
            ingredients=compared.ingredients,
            target=output.dialect,
            device=check_device(context.device),
            precise=output.precise,
            threads=context.threads,
            keep=spool_for(output.path),
            notify=context.notify,
        )
    except LoramergeError as error:
        error.file = error.file or adapter.info.path
        raise
    results = []
    for (small, combined), cut, made in zip(found, cuts, steps, strict=True):
        if made is not None:
            small = small.with_deltas(small.deltas, made=made)
        _report_loss(first.adapter.label, combined, cut.rule, context)
        results.append(
            ResizeResult(
                **AdapterResult.figures(small, combined),
                path=adapter.label,
                size_before=adapter.info.size,
                ranks_before=adapter.ranks(),
                ingredients=compared.lost(combined),
                error_at_base=None if cut.norms is None else combined.error_at(cut.norms),
            )
        )
    return results


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
                    f"{name}: only {100 * combined.norm_kept:.0f} % of the norm is kept{gone}; raise "
                    "the limit, or store each rank in fewer bytes with ",
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
    compared = Compared.of(parameters, source, whole, output, context, values=False)
    whole = for_dialect(whole, output.dialect)
    terms = {site: [Term(delta)] for site, delta in whole.deltas.items()}
    frame = whole.with_deltas({}, dtype=adapter.dtype)
    source = compared.named(source)
    made = source.step("resize", replace(parameters, ingredient=compared.references))
    return predict_adapter(frame, terms, rule, output, made, context)


_FIGURES = (
    "size_after", "dialect", "dtype", "ranks_before", "ranks_after", "relative_error", "norm_kept",
    "scale_applied", "worst", "left_out",
)  # fmt: skip


def _not_smaller(_: ResizeResult, size: int, before: int) -> str | None:
    return "the result would not be smaller" if size >= before else None


def resize_files(
    parameters: ResizeFiles, context: Context = Context()
) -> FilesResult[ResizeResult] | CurveResult:
    """Resize files. With a single one errors are raised; with several they are reported.

    With `curve` nothing is resized, and the result is a `CurveResult`.

    Raises:
        UsageError: for options that cannot go together.
        LoramergeError: for a single file, see `resize`.
    """
    if parameters.curve:
        return curve_of(parameters, context)
    work = FileWork(
        resize_each,
        _compute,
        (
            *_FIGURES,
            *(["ingredients"] if parameters.fair else []),
            *(["error_at_base"] if parameters.relative_to else []),
        ),
        unwanted=_not_smaller,
        copy_rest=parameters.copy_rest,
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
    output_path=output_path,
)
