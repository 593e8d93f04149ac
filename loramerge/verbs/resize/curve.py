"""The curve of an adapter: its error at many ranks, and at the best ranks for the same sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loramerge.adapter.sites import for_dialect
from loramerge.algebra.arrays import check_device
from loramerge.algebra.curve import CurvePoint, Loss, at_rank, at_size, ladder, spectra_of, worst
from loramerge.algebra.outcome import SizeModel
from loramerge.errors import Setting, UsageError, sized
from loramerge.library.patterns import expand
from loramerge.steps.adapters import budget, whole_size
from loramerge.steps.amounts import size_in_bytes
from loramerge.steps.in_folders import adapters_among
from loramerge.steps.outputs import output_of
from loramerge.steps.parameters import Context
from loramerge.steps.references import Reference
from loramerge.steps.shown import Shown
from loramerge.steps.source import open_source
from loramerge.verbs.resize.parameters import Resize, ResizeFiles

__all__ = ["Curve", "CurveResult", "compute_curve", "curve_of"]


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
    found = expand(parameters.files, context.root, context.notify)
    files, _ = adapters_among(found, parameters.files, context.root)
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
    return Curve(parameters, context).points(ranks, sizes)


class Curve:
    """An adapter with its spectra, of which any number of points follows.

    Args:
        parameters: the adapter, and how it would be written.

    Raises:
        LoramergeError: see `algebra.curve.spectra_of`.
    """

    def __init__(self, parameters: Resize, context: Context = Context()) -> None:
        self._parameters, self._context = parameters, context
        self._source = open_source(
            [parameters.adapter], parameters.base, context, skip_unknown=parameters.skip_unknown
        )
        self._output = output_of(parameters, self._source.adapters)
        self._whole = for_dialect(self._source.weighted(), self._output.dialect)
        self._spectra = spectra_of(
            self._whole,
            device=check_device(context.device),
            precise=self._output.precise,
            threads=context.threads,
            notify=context.notify,
        )

    def points(self, ranks: Sequence[int] = (), sizes: Sequence[str] = ()) -> CurveResult:
        """Return the curve; see `compute_curve`."""
        uniform = [self.at_rank(rank) for rank in (sorted(ranks) or ladder(self._spectra))]
        best = [self._at_bytes(self._same_tensors(point)) for point in uniform]
        return CurveResult(
            path=self._source.adapter.label,
            modules=len(self._spectra),
            size_before=self._source.adapter.info.size,
            uniform=uniform,
            best=[*best, *map(self.at_size, sizes)],
        )

    def at_rank(self, rank: int) -> CurvePoint:
        """Return the point of one rank for every module."""
        return at_rank(self._spectra, rank, self._size)

    def at_size(self, size: str) -> CurvePoint:
        """Return the point of the best ranks for a size, as `max_size` has it.

        Raises:
            UsageError: if even a file without any direction is larger.
        """
        whole = whole_size([self._source.adapter], self._parameters)
        return self._at_bytes(size_in_bytes(size, whole))

    def worst(self, point: CurvePoint, most: int = 10) -> list[Loss]:
        """Return the modules that lose most at a point; see `algebra.curve.worst`."""
        return worst(self._spectra, point.sites, most)

    def _at_bytes(self, most: int) -> CurvePoint:
        return at_size(self._spectra, most, self._model(max_size=str(most)))

    def _size(self, rank: int, **rule: Any) -> int:
        """Return the bytes at a rank; modules of that rank or less are written as they are.

        Args:
            rule: what the header's recipe says, if not this rank.
        """
        cut = {
            one.site: min(rank, len(one.energies))
            for one in self._spectra
            if (self._whole.deltas[one.site].rank or rank + 1) > rank
        }
        return self._model(**(rule or {"rank": rank})).exact(cut)

    def _same_tensors(self, point: CurvePoint) -> int:
        """Return the `max_size` with room for a point's tensors: its header has other bytes."""
        assert point.rank is not None
        most = point.size
        while (needed := self._size(point.rank, max_size=str(most))) > most:
            most = needed
        return most

    def _model(self, **rule: Any) -> SizeModel:
        made = self._source.step("resize", replace(self._parameters, **rule))
        frame = self._whole.with_deltas({}, dtype=self._source.adapter.dtype)
        return budget(frame, self._whole.deltas, self._output, made, self._context, stays=True)
