"""The result of a merge operator at one module, before its rank is chosen.

There are three forms: a sum of deltas, a core between orthonormal bases, and a dense matrix. Each can
be decomposed, and each can be returned as a dense matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from loramerge.adapter import Delta
from loramerge.algebra.application import array_of, coefficients_of, final_factor
from loramerge.algebra.arrays import Array, on_device
from loramerge.algebra.operator import (
    Cores,
    Method,
    Norm,
    Rows,
    Scalars,
    Statistic,
    Variance,
)
from loramerge.algebra.svd import (
    ROUNDING,
    Decomposition,
    decompose,
    decompose_dense,
    inner_product,
    signs_fixed,
)
from loramerge.algebra.terms import Term
from loramerge.errors import NumericsError, Setting

__all__ = ["Merged", "Sum", "merge_terms", "require_finite"]

_BLOCK = 1 << 20  # entries of each term that an operator on elements sees at a time
_APART = 1e-5  # squared singular values of unit vectors whose Gram matrix is precise enough
_DEPENDENT = 1e-9  # unit vectors whose singular value is below it add no direction


class Merged(Protocol):
    """A merged module.

    Attributes:
        only: the single input delta that is the result unchanged; None where something was computed.
        factored: whether it has an exact low-rank form.
        applied: the factor of the final scale, which the result contains.
    """

    @property
    def only(self) -> Delta | None: ...

    @property
    def factored(self) -> bool: ...

    @property
    def applied(self) -> float: ...

    def decompose(self, device: str | None, *, precise: bool) -> Decomposition:
        """Return the singular value decomposition.

        Args:
            device: torch device, or None for numpy.
            precise: see `svd.decompose`.
        """

    def dense(self) -> Array:
        """Return the matrix, `(out, in·kh·kw)` in float64."""


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


@dataclass(frozen=True)
class Sum:
    """The sum of deltas; zero if there are none."""

    deltas: Sequence[Delta]
    applied: float = 1.0
    shape: tuple[int, int] = (0, 0)  # where there is none

    @property
    def only(self) -> Delta | None:
        return self.deltas[0] if len(self.deltas) == 1 else None

    @property
    def factored(self) -> bool:
        return all(delta.rank is not None for delta in self.deltas)

    def decompose(self, device: str | None, *, precise: bool) -> Decomposition:
        import numpy as np

        if not self.factored:
            return decompose_dense(on_device(self.dense(), device))
        factors = [delta.factors("float64") for delta in self.deltas]
        if len(factors) == 1:
            up, down = factors[0]
        elif factors:
            up = np.concatenate([up for up, _ in factors], axis=1)
            down = np.concatenate([down for _, down in factors])
        else:
            up, down = np.zeros((self.shape[0], 0)), np.zeros((0, self.shape[1]))
        require_finite(up, down)
        return decompose(on_device(up, device), on_device(down, device), precise=precise)

    def dense(self) -> Array:
        import numpy as np

        if not self.deltas:
            return np.zeros(self.shape)
        total, *rest = (_matrix(delta) for delta in self.deltas)
        for one in rest:
            total = total + one
        require_finite(total)
        return total


@dataclass(frozen=True)
class _Core:
    """`left @ core @ right`, with orthonormal columns of left `(m, p)` and rows of right `(q, n)`.

    Args:
        factored: whether all terms had a low-rank form.
        size: the sum of the norms of the inputs, to which rounding in float64 is relative.
        applied: the factor of the final scale, which the core contains.
    """

    left: Array
    core: Array
    right: Array
    factored: bool
    size: float
    applied: float = 1.0
    only: None = None

    def decompose(self, device: str | None, *, precise: bool) -> Decomposition:
        found = decompose_dense(on_device(self.core, device))
        dtype = "float64" if precise else "float32"

        def truncate(rank: int) -> tuple[Array, Array]:
            up, down = found.truncate(rank)
            up, down = signs_fixed(self.left @ up, down @ self.right)
            return up.astype(dtype), down.astype(dtype)

        return Decomposition(found.singular_values, truncate, ROUNDING * self.size)

    def dense(self) -> Array:
        return self.left @ self.core @ self.right


@dataclass(frozen=True)
class _Matrix:
    """A dense matrix `(out, in·kh·kw)`; see `_Core`."""

    values: Array
    factored: bool
    size: float
    applied: float = 1.0
    only: None = None

    def decompose(self, device: str | None, *, precise: bool) -> Decomposition:
        found = decompose_dense(on_device(self.values, device))
        return replace(found, noise=ROUNDING * self.size)

    def dense(self) -> Array:
        return self.values


# ---- the three spaces


def _by_coefficients(module: str, terms: Sequence[Term], method: Method) -> Merged:
    """Return the sum of the terms' deltas at the coefficients that the operator gives."""
    import numpy as np

    def products() -> Array:
        factored = all(term.delta.rank is not None for term in terms)
        known: list[Any] = [
            _orthogonal(term.delta) if factored else _matrix(term.delta) for term in terms
        ]
        found = np.empty((len(terms), len(terms)))
        for i, a in enumerate(known):
            for j, b in enumerate(known[: i + 1]):
                product = inner_product(a, b) if factored else float((a * b).sum())
                found[i, j] = found[j, i] = product
        require_finite(found)
        return found

    seen = Scalars(module, *_weights_and_positions(terms), products)
    coefficients, factor = coefficients_of(method, seen)
    pairs = zip(terms, coefficients, strict=True)
    deltas = [replace(term, weight=c).weighted for term, c in pairs if c != 0.0]
    return Sum(deltas, factor, terms[0].delta.flat_shape)


def _by_cores(module: str, terms: Sequence[Term], method: Method) -> Merged:
    """Return the core that the operator gives between bases that the terms share."""
    import numpy as np

    factors = [_balanced(term.delta) for term in terms]
    left = _basis([up for up, _ in factors])
    right = _basis([down.T for _, down in factors])
    cores = tuple((left.T @ up) @ (down @ right) for up, down in factors)
    weights, positions = _weights_and_positions(terms)
    seen = Cores(module, weights, positions, cores)
    core = array_of(method, seen, (left.shape[1], right.shape[1]))
    factored = all(term.delta.rank is not None for term in terms)
    norms = [float(np.linalg.norm(core)) for core in cores]
    sizes = [abs(w) * n for w, n in zip(weights, norms, strict=True)]
    factor = final_factor(method, float(np.linalg.norm(core)), sizes)
    return _Core(left, factor * core, right.T, factored, sum(norms) * max(1.0, factor), factor)


def _by_rows(module: str, terms: Sequence[Term], method: Method) -> Merged:
    """Return the matrix whose blocks of rows the operator gives."""
    import numpy as np

    operator, parameters = method.operator, method.parameters
    rows, columns = terms[0].delta.flat_shape
    sources = [_row_source(term.delta) for term in terms]
    declared = operator.statistics(parameters) if operator.statistics is not None else {}
    statistics = {name: _gathered(one, sources, rows) for name, one in declared.items()}
    merged = np.empty((rows, columns))
    step, energies = max(1, _BLOCK // max(1, columns)), np.zeros(len(terms))
    weights, positions = _weights_and_positions(terms)
    for first in range(0, rows, step):
        stop = min(first + step, rows)
        values = tuple(source(first, stop) for source in sources)
        energies += [float((block**2).sum()) for block in values]
        seen = Rows(module, weights, positions, values, first, statistics)
        merged[first:stop] = array_of(method, seen, (stop - first, columns))
    norms = np.sqrt(energies)
    size = float(np.linalg.norm(merged))
    factor = final_factor(method, size, (abs(np.array(weights)) * norms).tolist())
    merged *= factor
    factored = all(term.delta.rank is not None for term in terms)
    return _Matrix(merged, factored, float(norms.sum()) * max(1.0, factor), factor)


def _gathered(statistic: Statistic, sources: Sequence[Any], rows: int) -> tuple[float, ...]:
    """Return a statistic of each whole term; one across terms is the same for each."""
    if isinstance(statistic, Variance):
        found = statistic.across([source(0, rows) for source in sources])
        return (found,) * len(sources)
    if isinstance(statistic, Norm):
        return statistic.of_each([source(0, rows) for source in sources])
    return tuple(statistic.of(source(0, rows)) for source in sources)


_SPACES: Mapping[str, Callable[[str, Sequence[Term], Method], Merged]] = {
    "scalars": _by_coefficients,
    "factors": _by_cores,
    "elements": _by_rows,
}


# ---- the matrices of the terms


def _weights_and_positions(terms: Sequence[Term]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    return tuple(term.weight for term in terms), tuple(term.position for term in terms)


def _matrix(delta: Delta) -> Array:
    """Return ΔW as `(out, in·kh·kw)` in float64."""
    return delta.dense(dtype="float64").reshape(delta.flat_shape)


def _orthogonal(delta: Delta) -> tuple[Array, Array]:
    """Return factors `(out, r)` with orthonormal columns and `(r, in·kh·kw)`.

    Products of other factors would lose precision twice: their conditioning enters squared.
    """
    import numpy as np

    up, down = delta.factors("float64")
    require_finite(up, down)
    left, rest = np.linalg.qr(up)
    return left, rest @ down


def _balanced(delta: Delta) -> tuple[Array, Array]:
    """Return factors `(out, r)` and `(r, in·kh·kw)` at the numerical rank r, the same in any gauge."""
    if delta.rank is None:
        found = decompose_dense(_finite(_matrix(delta)))
    else:
        up, down = delta.factors("float64")
        require_finite(up, down)
        found = decompose(up, down, precise=True)
    return found.truncate(found.rank)


def _basis(sides: Sequence[Array]) -> Array:
    """Return an orthonormal basis of the columns of several matrices, large and small alike."""
    import numpy as np

    unit = np.concatenate([side / np.linalg.norm(side, axis=0) for side in sides], axis=1)
    values, vectors = np.linalg.eigh(unit.T @ unit)
    if len(values) and values[0] > _APART * values[-1]:  # several times as fast, and as exact
        return unit @ (vectors / np.sqrt(values))
    left, sizes, _ = np.linalg.svd(unit, full_matrices=False)
    return left[:, sizes > _DEPENDENT]


def _row_source(delta: Delta) -> Any:
    """Return a function of (start, stop) that gives those rows of ΔW in float64."""
    if delta.rank is None:
        whole = _finite(_matrix(delta))
        return lambda start, stop: whole[start:stop]
    up, down = delta.factors("float64")
    require_finite(up, down)
    return lambda start, stop: _finite(up[start:stop] @ down)


# ---- checks


def _finite(array: Array) -> Array:
    require_finite(array)
    return array


def require_finite(*arrays: Array) -> None:
    """Refuse arrays with NaN or infinity in them.

    Raises:
        NumericsError: if there is one; the message blames the input.
    """
    import numpy as np

    for array in arrays:
        wide = array.astype("float32") if array.dtype.itemsize < 4 else array
        # a finite sum has finite parts; the sum of huge finite parts is checked in full
        if not np.isfinite(wide.sum()) and not np.isfinite(wide).all():
            raise NumericsError(
                "NaN or infinity in the input",
                hint=(
                    "inspect it with ",
                    Setting("deep", True),
                    " to list the modules that hold it",
                ),
            )
