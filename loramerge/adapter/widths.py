"""Float types by their width."""

from __future__ import annotations

__all__ = ["WIDTH", "widest"]

# order of width; what two different types of one width widen to is in `widest`
WIDTH = {"F8_E5M2": 0, "F8_E4M3": 0, "F16": 1, "BF16": 1, "F32": 2, "F64": 3}


def widest(dtypes: set[str]) -> str:
    """Return the narrowest type that holds every value of the given float types; never float8.

    The result does not depend on an order: float16 and bfloat16 together need float32.
    """
    floats = {dtype for dtype in dtypes if dtype in WIDTH}
    top = max((WIDTH[dtype] for dtype in floats), default=2)
    if top == 0:
        return "F16"
    if top == 1:
        halves = {dtype for dtype in floats if WIDTH[dtype] == 1}
        return halves.pop() if len(halves) == 1 else "F32"
    return "F32" if top == 2 else "F64"
