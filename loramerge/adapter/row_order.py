"""The orders of rows in which files store fused tensors, as ranges of rows."""

from __future__ import annotations

from loramerge.errors import ShapeError

__all__ = ["halves", "stacked"]


def halves(rows: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the row ranges that exchange the halves of a number of rows."""
    return (rows // 2, rows), (0, rows // 2)


def stacked(rows: int, parts: int, width: int) -> list[tuple[int, int]]:
    """Return the row ranges that lay parts one after the other which are interleaved by heads.

    Args:
        width: rows of a head of one part.

    Raises:
        ShapeError: if the rows are not whole heads.
    """
    if rows % (parts * width):
        raise ShapeError(
            "the rows of a tensor that is interleaved by heads are not whole heads",
            expected=f"a multiple of {parts} × {width}",
            found=rows,
        )
    return [
        (start, start + width)
        for part in range(parts)
        for start in range(part * width, rows, parts * width)
    ]
