"""Finding which directions of a fused up act on which part of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["block_columns"]


def block_columns(up: Array, bounds: Sequence[int]) -> list[tuple[int, int]] | None:
    """Return the column range of each part of the rows, if `up` `(out, r)` is block-diagonal.

    Equal blocks, as trainers write them, are found first: `r` divides by the number of parts and
    everything beside the blocks is exactly zero. Then blocks of any width, one after the other;
    such a part may be empty, which means that it is zero.

    Args:
        bounds: where the rows of each part begin, and the end.

    Returns:
        None if the parts share directions.
    """
    count, rank = len(bounds) - 1, up.shape[1]
    used = [(up[start:stop] != 0).any(axis=0) for start, stop in pairwise(bounds)]
    if rank % count == 0:
        width = rank // count
        equal = [(i * width, (i + 1) * width) for i in range(count)]
        if all(_inside(columns, block) for columns, block in zip(used, equal, strict=True)):
            return equal
    found: list[tuple[int, int]] = []
    end = 0
    for columns in used:
        acting = columns.nonzero()[0]
        if not len(acting):
            found.append((end, end))
            continue
        if acting[0] < end:
            return None
        found.append((int(acting[0]), int(acting[-1]) + 1))
        end = found[-1][1]
    # all in one part: the others are zero, but nothing of the rank is saved by saying so
    return found if any(first < last for first, last in found) else None


def _inside(columns: Array, block: tuple[int, int]) -> bool:
    """Return whether every used column is in a block."""
    return not (columns[: block[0]].any() or columns[block[1] :].any())
