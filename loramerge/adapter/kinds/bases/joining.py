"""Rows of several deltas, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from loramerge.adapter.delta import Delta

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["Placed", "filled"]

Placed = Sequence[tuple[int, Delta]]  # first row, delta


def filled(shape: tuple[int, ...], pieces: Callable[[], Sequence[tuple[int, Array]]]) -> Any:
    """Return a function that makes an array of zeros with pieces at their first rows."""

    def make() -> Array:
        import numpy as np

        found = pieces()
        whole = np.zeros(shape, found[0][1].dtype)
        for start, piece in found:
            whole[start : start + piece.shape[0]] = piece
        return whole

    return make
