"""The changes that adapters make to rows of a stored tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from loramerge.adapter import Delta
from loramerge.adapter.delta import ReadRows
from loramerge.checkpoint import Place
from loramerge.errors import AdapterError
from loramerge.stream.edits import Edit
from loramerge.stream.reading import Stretch, alternating, read_weights

__all__ = ["Reader", "fill_change", "row_adders"]

# where a weight is stored, and a numpy type → the function that reads its rows
Reader = Callable[[Sequence[Stretch], str], ReadRows]


def row_adders(edit: Edit, kind: str, reader: Reader = read_weights) -> list[Any]:
    """Return the function of each delta that adds rows of it, counted as the tensor stores them.

    Args:
        kind: numpy type of the computation.
        reader: gives the function that reads the weights which the deltas lie on.
    """
    reads = [reader(stretches, kind) for stretches in edit.stretches]
    if edit.place.heads:
        return [
            _alternating(edit.place, delta, offset, delta.row_adder(kind, read), read)
            for delta, offset, read in zip(edit.deltas, edit.offsets, reads, strict=True)
        ]
    if not edit.place.transposed:
        return [d.row_adder(kind, read) for d, read in zip(edit.deltas, reads, strict=True)]
    rows, columns = edit.place.shape

    def transposed(delta: Delta, offset: int, stretches: Sequence[Stretch], read: ReadRows) -> Any:
        if delta.facts.replaces:
            raise AdapterError(
                "a replacement of a transposed tensor is not supported", module=edit.site.name
            )
        # the whole tensor at once: the few that are stored so are small
        height = max(begin + place.shape[0] for begin, place in stretches)
        base = read(0, height) if delta.needs_base else None
        whole = delta.dense(base, dtype=kind).reshape(-1, columns)
        flipped = whole[offset : offset + rows].T

        def add(start: int, stop: int, _: Any, out: Any, fresh: bool) -> None:
            rows = flipped[start - offset : stop - offset]
            if fresh:
                out[:] = rows
            else:
                out += rows

        return add

    return [
        transposed(*one)
        for one in zip(edit.deltas, edit.offsets, edit.stretches, reads, strict=True)
    ]


def _alternating(place: Place, delta: Delta, offset: int, add: Any, read: ReadRows) -> Any:
    """Return the function that adds rows of a delta in the order in which heads are stored."""
    import numpy as np

    def stored(start: int, stop: int, _: Any, out: Any, fresh: bool) -> None:
        first, last = place.whole_heads(start - offset, stop - offset)
        shape = (last - first, out.shape[1])
        base = (
            read(first + offset, last + offset) if delta.needs_base else np.zeros(shape, out.dtype)
        )
        rows = np.empty(shape, out.dtype)
        add(first + offset, last + offset, base, rows, True)
        found = alternating(rows, place.head)[start - offset - first : stop - offset - first]
        if fresh:
            out[:] = found
        else:
            out += found

    return stored


def fill_change(
    edits: Sequence[Edit],
    adders: Sequence[Sequence[Any]],
    start: int,
    stop: int,
    base: Any,
    asked: Any,
) -> list[tuple[int, int, int]] | None:
    """Fill an array with the change of stored rows.

    Args:
        adders: of each edit, see `row_adders`.
        base: the weights that these rows hold before.
        asked: array to fill, of their shape.

    Returns:
        (edit, first, last) of the rows that each edit covers, counted from `start`; None without edits.
    """
    covered = []  # index, first, last, what to add to a stored row to have the module's
    for index, edit in enumerate(edits):
        for low, high, begin in edit.place.pieces:
            first, last = max(low, start), min(high, stop)
            if first < last:
                covered.append((index, first, last, begin - low))
    if not edits:
        return None
    if sum(last - first for _, first, last, _ in covered) != stop - start:
        asked[:] = -0.0  # leaves every value as it is, the sign of a zero included
    for index, first, last, shift in covered:
        rows = slice(first - start, last - start)
        for number, add in enumerate(adders[index]):
            begin = shift + edits[index].offsets[number]
            add(first + begin, last + begin, base[rows], asked[rows], number == 0)
    return [(index, first, last) for index, first, last, _ in covered]
