"""Apply a method to the terms of one module, in the space of its operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from loramerge.algebra.application import array_of, coefficients_of, final_factor
from loramerge.algebra.arrays import Array
from loramerge.algebra.bases import Shared, shared
from loramerge.algebra.matrices import (
    matrix,
    orthogonal,
    require_finite,
    row_source,
)
from loramerge.algebra.merged import Core, Matrix, Merged, Sum
from loramerge.algebra.method import Method
from loramerge.algebra.statistics import ColumnProducts, Norm, Statistic, Variance
from loramerge.algebra.svd import inner_product
from loramerge.algebra.terms import Term
from loramerge.algebra.views import Cores, Rows, Scalars

__all__ = ["merge_terms", "numbers_of"]

_BLOCK = 1 << 20  # entries of each term that an operator on elements sees at a time


def merge_terms(module: str, terms: Sequence[Term], method: Method) -> Merged:
    """Apply a method to the terms of one module, whose deltas are matrices of one shape.

    Raises:
        NumericsError: if an input or the result holds NaN or infinity.
        UsageError: if a third-party operator fails or returns another shape.
    """
    operator, scale = method.operator, method.scale
    if method.is_sum:
        return Sum([term.weighted for term in terms])
    if len(terms) == 1 and not operator.alone:
        factor = scale if isinstance(scale, float) else 1.0
        return Sum([replace(term, weight=factor * term.weight).weighted for term in terms], factor)
    return _SPACES[operator.space](module, terms, method)


# ---- coefficients


def _by_coefficients(module: str, terms: Sequence[Term], method: Method) -> Merged:
    """Return the sum of the terms' deltas at the coefficients that the operator gives."""
    seen = Scalars(module, *_weights_and_positions(terms), lambda: _products(terms))
    if method.correction is not None:
        coefficients, _ = coefficients_of(replace(method, scale="literal"), seen)
        between = shared([term.delta for term in terms])
        core = sum(c * one for c, one in zip(coefficients, between.cores, strict=True))
        return _finished(method, core, between, terms, between.cores)
    coefficients, factor = coefficients_of(method, seen)
    pairs = zip(terms, coefficients, strict=True)
    deltas = [replace(term, weight=c).weighted for term, c in pairs if c != 0.0]
    return Sum(deltas, factor, terms[0].delta.flat_shape)


def _products(terms: Sequence[Term]) -> Array:
    """Return the inner products of the terms' deltas, `(terms, terms)` in float64."""
    import numpy as np

    factored = all(term.delta.rank is not None for term in terms)
    known: list[Any] = [
        orthogonal(term.delta) if factored else matrix(term.delta) for term in terms
    ]
    found = np.empty((len(terms), len(terms)))
    for i, a in enumerate(known):
        for j, b in enumerate(known[: i + 1]):
            product = inner_product(a, b) if factored else float((a * b).sum())
            found[i, j] = found[j, i] = product
    require_finite(found)
    return found


# ---- cores


def _by_cores(module: str, terms: Sequence[Term], method: Method) -> Merged:
    """Return the core that the operator gives between bases that the terms share."""
    columns = method.operator.space == "columns"
    between = shared([term.delta for term in terms], columns=columns)
    seen = Cores(module, *_weights_and_positions(terms), between.cores, between.factors)
    core = array_of(method, seen, seen.values[0].shape)
    return _finished(method, core, between, terms, seen.values)


def _finished(
    method: Method,
    core: Array,
    between: Shared,
    terms: Sequence[Term],
    cores: Sequence[Array],
) -> Core:
    """Return a core between its bases, corrected and at its final scale."""
    import numpy as np

    weights = [term.weight for term in terms]
    core = _corrected(method, core, (w * one for w, one in zip(weights, cores, strict=True)))
    norms = [float(np.linalg.norm(one)) for one in cores]
    sizes = [abs(w) * n for w, n in zip(weights, norms, strict=True)]
    factor = final_factor(method, float(np.linalg.norm(core)), sizes)
    factored = all(term.delta.rank is not None for term in terms)
    size = sum(norms) * max(1.0, factor)
    return Core(between.left, factor * core, between.right, factored, size, factor)


def _corrected(method: Method, result: Array, changes: Iterable[Array]) -> Array:
    """Return the result of an operator after the correction, if there is one.

    Args:
        changes: the weighted change of each term, as matrices between the bases of the result.
    """
    correct = None if method.correction is None else method.correction.correct
    return result if correct is None else correct(result, changes)


# ---- elements


def _by_rows(module: str, terms: Sequence[Term], method: Method) -> Merged:
    """Return the matrix whose blocks of rows the operator gives."""
    import numpy as np

    rows, columns = terms[0].delta.flat_shape
    sources = [row_source(term.delta) for term in terms]
    statistics = _statistics(sources, rows, method)
    merged = np.empty((rows, columns))
    step, energies = max(1, _BLOCK // max(1, columns)), np.zeros(len(terms))
    weights, positions = _weights_and_positions(terms)
    for first in range(0, rows, step):
        stop = min(first + step, rows)
        values = tuple(source(first, stop) for source in sources)
        energies += [float((block**2).sum()) for block in values]
        seen = Rows(module, weights, positions, values, first, statistics, method.pooled)
        merged[first:stop] = array_of(method, seen, (stop - first, columns))
    if method.correction is not None:
        merged = _corrected_whole(method, merged, weights, sources)
    norms = np.sqrt(energies)
    size = float(np.linalg.norm(merged))
    factor = final_factor(method, size, (abs(np.array(weights)) * norms).tolist())
    merged *= factor
    factored = all(term.delta.rank is not None for term in terms)
    return Matrix(merged, factored, float(norms.sum()) * max(1.0, factor), factor)


def _corrected_whole(
    method: Method, merged: Array, weights: Sequence[float], sources: Sequence[Any]
) -> Array:
    """Return a dense result after the correction; one dense term is held at a time.

    A long matrix is corrected between its orthonormal columns, as small as it is wide.
    """
    import numpy as np

    rows, columns = merged.shape

    def changes(left: Array | None) -> Iterator[Array]:
        for weight, source in zip(weights, sources, strict=True):
            whole = source(0, rows)
            yield weight * (whole if left is None else left.T @ whole)

    if rows <= columns:
        return _corrected(method, merged, changes(None))
    left, core = np.linalg.qr(merged)
    result: Array = left @ _corrected(method, core, changes(left))
    return result


def _statistics(sources: Sequence[Any], rows: int, method: Method) -> dict[str, tuple[Any, ...]]:
    """Return the statistics of every whole term that the operator declares."""
    declare = method.operator.statistics
    declared = {} if declare is None else declare(method.parameters)
    return {name: _gathered(one, sources, rows) for name, one in declared.items()}


def numbers_of(terms: Sequence[Term], method: Method) -> Array:
    """Return the numbers of a module that the operator's `pool` collects."""
    assert method.operator.pool is not None
    sources = [row_source(term.delta) for term in terms]
    statistics = _statistics(sources, terms[0].delta.flat_shape[0], method)
    return method.operator.pool.of(statistics, method.parameters)


def _gathered(statistic: Statistic, sources: Sequence[Any], rows: int) -> tuple[Any, ...]:
    """Return a statistic of each whole term; one across terms is the same for each."""
    if isinstance(statistic, (Variance, ColumnProducts)):
        found = statistic.across([source(0, rows) for source in sources])
        return (found,) * len(sources)
    if isinstance(statistic, Norm):
        return statistic.of_each([source(0, rows) for source in sources])
    return tuple(statistic.of(source(0, rows)) for source in sources)


_SPACES: Mapping[str, Callable[[str, Sequence[Term], Method], Merged]] = {
    "scalars": _by_coefficients,
    "factors": _by_cores,
    "columns": _by_cores,
    "elements": _by_rows,
}


def _weights_and_positions(terms: Sequence[Term]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    return tuple(term.weight for term in terms), tuple(term.position for term in terms)
