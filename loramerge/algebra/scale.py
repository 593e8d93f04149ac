"""The final scale: how loud the result of a merge operator is in each module.

Operators that are not the plain sum change norms as a side effect: a mean of n unrelated changes has
1/√n of the norm of one. The final scale decides the norm of the result, apart from its direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from loramerge.errors import UsageError

__all__ = ["SCALES", "checked_scale", "factor_of"]

SCALES = ("literal", "norm-match", "1/sqrt")

Scale = str | float


def checked_scale(value: Scale) -> Scale:
    """Return a scale as a word, or as a number.

    Args:
        value: `literal`, `norm-match`, `1/sqrt`, or a number other than 0, also as text.

    Raises:
        UsageError: if it is none of these.
    """
    if value in SCALES:
        return value
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number == 0:
        raise UsageError(
            "the scale is not known",
            expected=f"{', '.join(SCALES)}, or a number other than 0",
            found=value,
        )
    return number


def factor_of(scale: Scale, result: float, norms: Sequence[float]) -> float:
    """Return the factor that the result of an operator is multiplied by in one module.

    Args:
        scale: `literal`: 1; `norm-match`: the mean of the norms over that of the result; `1/sqrt`:
            1/√n for n terms; a number is the factor itself.
        result: ‖X‖ of the operator's result.
        norms: ‖wᵢ ΔWᵢ‖ of each term.
    """
    if isinstance(scale, float):
        return scale
    if scale == "norm-match":
        return math.fsum(norms) / len(norms) / result if result > 0 else 1.0
    return 1 / math.sqrt(len(norms)) if scale == "1/sqrt" else 1.0
