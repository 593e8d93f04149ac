"""Apply a merge operator to what it sees of a module, and check what it returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from loramerge.algebra.arrays import Array
from loramerge.algebra.method import Method
from loramerge.algebra.operator import Operator
from loramerge.algebra.scale import factor_of
from loramerge.algebra.views import Cores, Rows, Scalars
from loramerge.errors import LoramergeError, NumericsError, UsageError

__all__ = ["array_of", "coefficients_of", "final_factor"]

_NOTHING = 1e-9  # share of the inputs' norms below which a result is rounding alone


def coefficients_of(method: Method, seen: Scalars) -> tuple[list[float], float]:
    """Return the coefficient of each term, and the factor of the final scale that they contain.

    Args:
        method: of an operator on `scalars`.

    Raises:
        UsageError: if a third-party operator fails or returns another number of coefficients.
        NumericsError: if it returns NaN or infinity.
    """
    import numpy as np

    coefficients = array_of(method, seen, (len(seen.weights),))
    factor = 1.0
    if method.scale == "norm-match":
        known = seen.products
        norms = abs(np.array(seen.weights)) * np.sqrt(np.maximum(np.diag(known), 0.0))
        size = float(np.sqrt(max(0.0, float(coefficients @ known @ coefficients))))
        if size > _NOTHING * float(abs(coefficients) @ np.sqrt(np.diag(known))):
            factor = factor_of(method.scale, size, norms.tolist())
    elif method.scale != "literal":
        factor = factor_of(method.scale, 1.0, seen.weights)
    scaled: list[float] = (factor * coefficients).tolist()
    return scaled, factor


def array_of(method: Method, seen: Scalars | Cores | Rows, shape: tuple[int, ...]) -> Array:
    """Return what an operator makes of what it sees: coefficients, a core, or rows.

    They are float64, or float32 where it sees rows in that.

    Args:
        shape: that the result must have.

    Raises:
        UsageError: if a third-party operator fails or returns another shape.
        NumericsError: if it returns NaN or infinity.
    """
    import numpy as np

    operator = method.operator
    with _blamed(operator):
        narrow = isinstance(seen, Rows) and all(one.dtype == "float32" for one in seen.values)
        kind = "float32" if narrow else "float64"
        found = np.asarray(operator.merge(seen, method.parameters), kind)
    if found.shape != shape:
        raise UsageError(
            f"the operator {operator.name} returned an array of the wrong shape",
            expected=list(shape),
            found=list(found.shape),
        )
    if not np.isfinite(found.sum()) and not np.isfinite(found).all():
        raise NumericsError(f"the operator {operator.name} returned NaN or infinity")
    return found


def final_factor(method: Method, size: float, norms: Sequence[float]) -> float:
    """Return the factor of the final scale for a result, 1 where it is rounding alone.

    Args:
        size: ‖X‖ of what the operator returned.
        norms: ‖wᵢ ΔWᵢ‖ of each term.
    """
    return factor_of(method.scale, size if size > _NOTHING * sum(norms) else 0.0, norms)


@contextmanager
def _blamed(operator: Operator) -> Iterator[None]:
    """Turn a failure inside a third-party operator into an error that names the operator."""
    try:
        yield
    except LoramergeError:
        raise
    except Exception as error:
        if operator.merge.__module__.partition(".")[0] == "loramerge":
            raise
        raise UsageError(
            f"the operator {operator.name} failed",
            found=f"{type(error).__name__}: {error}",
            hint=f"fix the operator in {operator.merge.__module__}",
        ) from error
