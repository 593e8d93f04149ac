"""The curve of an adapter: its error at many ranks, and at the best ranks for the same sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loramerge.adapter.sites import for_dialect
from loramerge.algebra.arrays import check_device
from loramerge.algebra.curve import CurvePoint, at_rank, at_size, ladder, spectra_of
from loramerge.errors import Setting, UsageError, sized
from loramerge.library.lookup import expand
from loramerge.steps.adapters import budget, whole_size
from loramerge.steps.outputs import output_of
from loramerge.steps.parameters import Context
from loramerge.steps.references import Reference
from loramerge.steps.shown import Shown
from loramerge.steps.source import open_source
from loramerge.steps.writing import size_in_bytes
from loramerge.verbs.resize.parameters import Resize, ResizeFiles

__all__ = ["CurveResult", "compute_curve", "curve_of"]


@dataclass(kw_only=True, repr=False)
class CurveResult(Shown):
    """The error of an adapter against rank and size.

    Args:
        uniform: points of one rank for every module.
        best: points of the ranks that `max_size` chooses, each with room for the tensors of its point
            in `uniform`, and then for the sizes that were asked for.
    """

    headline = ("path", "modules")
    reported_as = "resize"

    path: str
    modules: int
    size_before: int | None
    uniform: list[CurvePoint]
    best: list[CurvePoint]

    def table_rows(self) -> Iterator[tuple[str, ...]]:
        yield ("rank of all modules", "its error", "size", "best ranks", "their error")
        for even, best in self.pairs():
            yield (
                "" if even is None else str(even.rank),
                "" if even is None else f"{even.relative_error:.4g}",
                sized((even or best).size),
                _range(best),
                f"{best.relative_error:.4g}",
            )

    def pairs(self) -> list[tuple[CurvePoint | None, CurvePoint]]:
        """Return the points of each line of the table, by size."""
        asked = [(None, best) for best in self.best[len(self.uniform) :]]
        found = [*zip(self.uniform, self.best, strict=False), *asked]
        return sorted(found, key=lambda pair: pair[1].size)

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {
            "outputs": [],
            "path": self.path,
            "modules": self.modules,
            "size_before": self.size_before,
            "uniform": [_json(point) for point in self.uniform],
            "best": [_json(point) for point in self.best],
        }


def _range(point: CurvePoint) -> str:
    least, most = min(point.ranks, default=0), max(point.ranks, default=0)
    return str(least) if least == most else f"{least} to {most}"


def _json(point: CurvePoint) -> dict[str, Any]:
    return {
        "rank": point.rank,
        "max_size": point.max_size,
        "size": point.size,
        "relative_error": point.relative_error,
        "norm_kept": point.norm_kept,
        "ranks": dict(point.ranks),
    }


def curve_of(parameters: ResizeFiles, context: Context) -> CurveResult:
    """Compute the curve of the file that parameters name.

    Raises:
        UsageError: if they name several files, or options that a curve does not have.
    """
    _check(parameters)
    files = expand(parameters.files, context.root)
    if len(files) != 1:
        raise UsageError(
            "a curve is of one file",
            found=f"{len(files)} files",
            hint="run the command once for each of them",
        )
    shared = {name: getattr(parameters, name) for name in _SHARED}
    one = Resize(adapter=Reference(str(files[0][0])), **shared)
    return compute_curve(one, parameters.rank, parameters.max_size, context)


_SHARED = ("to", "program", "dtype", "base", "skip_unknown")
_NOT_OF_CURVES = (
    "energy", "ratio", "cumulative", "conv_rank", "max_error", "max_module_error", "fair", "ingredient",
    "relative_to", "output", "out_dir", "results", "copy_rest",
)  # fmt: skip


def _check(parameters: ResizeFiles) -> None:
    parameters.target(), parameters.float_type()
    given = [name for name in _NOT_OF_CURVES if getattr(parameters, name)]
    if given:
        raise UsageError(
            f"a curve has no {given[0]}: it writes no adapter, and shows ranks and sizes",
            hint=("give ", Setting("curve", True), " alone, or with ", Setting("plot", "FILE.png")),
        )


def compute_curve(
    parameters: Resize, ranks: Sequence[int], sizes: Sequence[str], context: Context = Context()
) -> CurveResult:
    """Return the curve of an adapter.

    Args:
        parameters: the adapter, and how it would be written.
        ranks: of every module; none shows 1, 2, 3, 4, 6, 8, 12, … up to the largest.
        sizes: further sizes, as `max_size` has them.

    Raises:
        LoramergeError: see `algebra.curve.spectra_of`.
    """
    source = open_source(
        [parameters.adapter], parameters.base, context, skip_unknown=parameters.skip_unknown
    )
    adapter, output = source.adapter, output_of(parameters, source.adapters)
    whole = for_dialect(source.weighted(), output.dialect)
    spectra = spectra_of(
        whole,
        device=check_device(context.device),
        precise=output.precise,
        threads=context.threads,
        notify=context.notify,
    )
    frame = whole.with_deltas({}, dtype=adapter.dtype)
    total = whole_size([adapter], parameters) if sizes else 0

    def model(**rule: Any) -> Any:
        made = source.step("resize", replace(parameters, **rule))
        return budget(frame, whole.deltas, output, made, context)

    def size(rank: int, **rule: Any) -> int:
        """Return the bytes at a rank; modules of that rank or less are written as they are.

        Args:
            rule: what the header's recipe says, if not this rank.
        """
        cut = {
            one.site: min(rank, len(one.energies))
            for one in spectra
            if (whole.deltas[one.site].rank or rank + 1) > rank
        }
        found: int = model(**(rule or {"rank": rank})).exact(cut)
        return found

    def same_tensors(point: CurvePoint) -> int:
        """Return the `max_size` with room for a point's tensors: its header has other bytes."""
        assert point.rank is not None
        most = point.size
        while (needed := size(point.rank, max_size=str(most))) > most:
            most = needed
        return most

    uniform = [at_rank(spectra, rank, size) for rank in (sorted(ranks) or ladder(spectra))]
    asked = [*map(same_tensors, uniform), *(size_in_bytes(text, total) for text in sizes)]
    best = [at_size(spectra, most, model(max_size=str(most))) for most in asked]
    return CurveResult(
        path=adapter.label,
        modules=len(spectra),
        size_before=adapter.info.size,
        uniform=uniform,
        best=best,
    )
