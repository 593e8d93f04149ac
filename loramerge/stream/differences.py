"""The difference of two checkpoints at a site, read in blocks of rows, with the noise of rounding."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from loramerge.adapter import Site
from loramerge.algebra.extract import Change
from loramerge.algebra.noise import NoiseSums, precision_of, spacing
from loramerge.checkpoint import Place
from loramerge.errors import NumericsError
from loramerge.stream.pairing import PairedSite, PlacePair
from loramerge.stream.reading import read_weights, stored_rows
from loramerge.stream.walk import BLOCK_ELEMENTS, Buffers

__all__ = [
    "energy_in",
    "energy_of",
    "equal_bytes",
    "is_bare",
    "read_change",
    "rounding_in",
    "same_bytes",
]

_NOISY = 0.5  # share of the energy that rounding should have, below which it is something else
_SPREAD = 4.0  # times 1/√n: how far the energy of n roundings may be below the expected one
_SUMMED = 1 << 13  # squares that are added in the type of the values
_SAFE = 1e-24  # squares of float32 that add up to less may have vanished
_WITHIN = 1.001  # forgives the rounding of scales and sums in float32
# share of equal weights up to which a step of one is no sign of rounding
_FEW = 1 / (6 * _WITHIN**2)

Array = Any  # numpy.ndarray


class _Block(NamedTuple):
    """Rows of a difference.

    Args:
        start: the first row; values: `(rows, columns)`; variances: of the same shape.
        energy: ‖values‖².
        within: whether every value is explained by rounding.
        types: see `Change`.
    """

    start: int
    values: Array
    energy: float
    variances: Array | None
    within: bool
    types: frozenset[str]


def read_change(
    group: PairedSite, dtype: str, *, noise: bool = True, buffers: Buffers | None = None
) -> Change:
    """Read the difference of one site.

    Args:
        dtype: numpy float type of the difference.
        noise: also measure the rounding that may be in it.
        buffers: hold the difference until the thread reads the next one; None for memory of its own.

    Raises:
        NumericsError: if a checkpoint holds NaN or infinity there.
    """
    import numpy as np

    sums = NoiseSums.zeros(group.flat_shape)
    if all(same_bytes(pair) for pair in group.pairs):
        return Change(None, sums, rounding=False)
    matrix = (buffers or Buffers()).get("change", np.dtype(dtype), group.flat_shape)
    within, types, energy = True, frozenset[str](), 0.0
    for block in _blocks(group, dtype, noise=noise, out=matrix):
        if block.variances is not None:
            sums.add(block.start, block.variances)
        within, types = within and block.within, types | block.types
        energy += block.energy
    if energy == 0.0:
        return Change(None, sums, rounding=False)
    rounding = noise and within and energy >= _least(sums.energy, matrix.size)
    return Change(matrix, sums, rounding, types, energy)


def energy_of(group: PairedSite) -> tuple[float, bool]:
    """Return ‖tuned − base‖², and whether rounding explains all of it; in blocks of rows.

    Raises:
        NumericsError: if a checkpoint holds NaN or infinity there.
    """
    if all(same_bytes(pair) for pair in group.pairs):
        return 0.0, False
    total, expected, within = 0.0, 0.0, True
    for block in _blocks(group, "float32", noise=True):
        total += block.energy
        within = within and block.within
        if block.variances is not None:
            expected += float(block.variances.sum(dtype="float64"))
    rows, columns = group.flat_shape
    return total, total > 0.0 and within and total >= _least(expected, rows * columns)


def _least(expected: float, count: int) -> float:
    """Return the least energy that so many roundings have; a few of them may have any."""
    return max(0.0, min(_NOISY, 1.0 - _SPREAD / math.sqrt(count))) * expected


def _blocks(
    group: PairedSite, dtype: str, *, noise: bool, out: Array | None = None
) -> Iterator[_Block]:
    """Yield the difference of a site in blocks of rows, which are also put into `out`."""
    import numpy as np

    columns = group.flat_shape[1]
    step = max(1, BLOCK_ELEMENTS // max(1, columns))
    for begin, pair in group.stretches:
        rows = pair.tuned.shape[0]
        height = rows if pair.tuned.transposed or pair.base.transposed else step
        readers = [read_weights([(0, place)], dtype) for place in pair]
        plain = [is_bare(place) for place in pair]
        for start in range(0, rows, max(1, height)):
            stop = min(start + height, rows)
            tuned, base = (read(start, stop).reshape(stop - start, columns) for read in readers)
            place = None if out is None else out[begin + start : begin + stop]
            with np.errstate(invalid="ignore", over="ignore"):
                values = np.subtract(tuned, base, out=place)
                energy = energy_in(values)
            if not math.isfinite(energy):
                _refuse_values(group.site, pair, tuned)
            found = (
                rounding_in(pair, plain, start, stop, tuned, base, values) if noise else _NOTHING
            )
            yield _Block(begin + start, values, energy, *found)


def energy_in(values: Array) -> float:
    """Return ‖values‖², infinity or NaN only where a value is that; values are contiguous."""
    import numpy as np

    flat = values.reshape(-1)
    pieces = (flat[start : start + _SUMMED] for start in range(0, flat.size, _SUMMED))
    found = math.fsum(float(np.dot(piece, piece)) for piece in pieces)
    if _SAFE < found < 1.0 / _SAFE:
        return found
    wide = flat.astype("longdouble")  # squares may be too large or too small for the type
    return float(np.dot(wide, wide)) if np.isfinite(flat).all() else math.inf


_NOTHING: tuple[None, bool, frozenset[str]] = (None, False, frozenset())


def rounding_in(
    pair: PlacePair,
    plain: Sequence[bool],
    start: int,
    stop: int,
    tuned: Array,
    base: Array,
    values: Array,
) -> tuple[Array, bool, frozenset[str]]:
    """Return the variances of rounding in a block, whether it explains the block, and its types.

    Weights of one type on both sides were not rounded apart: a weight that did not change is equal. One
    that moved by one step of its type was moved there by rounding, most likely, if few others moved.
    """
    import numpy as np

    stored = [place.tensor.dtype for place in pair]
    names = [
        precision_of(weights, dtype) if bare else dtype
        for weights, dtype, bare in zip((tuned, base), stored, plain, strict=True)
    ]
    if names[0] == names[1] and all(plain):
        step = spacing(tuned, names[0]).reshape(tuned.shape)
        still = values == 0
        count = np.count_nonzero(still)
        variances = np.multiply(step, step)
        variances *= np.float32(1 / 6)  # both sides may have been rounded
        if count:
            np.copyto(variances, 0, where=still)
        unmoved = count / max(1, values.size)
        if unmoved > _FEW:
            size = np.abs(values)
            by_one = ~still & (size <= _WITHIN * step)
            variances = np.where(by_one, np.maximum(unmoved * size**2, variances), variances)
        return variances, count == values.size, frozenset()
    steps = [
        spacing(weights, name).reshape(weights.shape) if bare else steps_of(place, start, stop)
        for place, name, weights, bare in zip(pair, names, (tuned, base), plain, strict=True)
    ]
    variances = (steps[0] ** 2 + steps[1] ** 2) / 12
    within = bool((np.abs(values) <= _WITHIN / 2 * (steps[0] + steps[1])).all())
    coarser = names[int(steps[1].sum() > steps[0].sum())]
    return variances, within, frozenset({coarser})


def steps_of(place: Place, start: int, stop: int) -> Array:
    """Return the distances that the stored numbers of weights have from their neighbours."""
    read = read_weights([(0, place)], "float32", stored=_stored_steps)
    return read(start, stop).reshape(stop - start, -1)


def _stored_steps(place: Place, start: int, stop: int) -> Array:
    """Return the distances of the numbers around quantised weights, in rows as they are stored."""
    held = place.require_held()
    if held.packing is not None:
        return held.packing.steps(start, stop)
    rows = stored_rows(place.tensor)(start, stop).astype("float32")
    return held.dequantise(spacing(rows, place.tensor.dtype), start)


def is_bare(place: Place) -> bool:
    """Return whether the stored numbers are the weights."""
    held = place.require_held()
    return held.packing is None and held.codec(place.tensor.dtype).plain


def same_bytes(pair: PlacePair) -> bool:
    """Return whether both checkpoints hold the same bytes for a parameter, block by block."""
    tuned, base = pair
    alike = (
        tuned.tensor.dtype == base.tensor.dtype
        and tuned.transposed == base.transposed
        and tuned.swapped == base.swapped
        and tuned.heads == base.heads
        and tuned.tensor.shape[1:] == base.tensor.shape[1:]
        and is_bare(tuned)
        and is_bare(base)
    )
    if not alike:
        return False
    readers = [stored_rows(place.tensor) for place in pair]
    (first, last), (other, _) = tuned.rows, base.rows
    columns = max(1, tuned.tensor.size // max(1, tuned.tensor.shape[0]))
    step = max(1, BLOCK_ELEMENTS // columns)
    for start in range(first, last, step):
        stop = min(start + step, last)
        ours = readers[0](start, stop)
        theirs = readers[1](start - first + other, stop - first + other)
        if not equal_bytes(ours, theirs):
            return False
    return True


def equal_bytes(a: Array, b: Array) -> bool:
    """Return whether two contiguous arrays of one size hold the same bytes."""
    import numpy as np

    pair = [x.reshape(-1).view(np.uint8) for x in (a, b)]
    whole = pair[0].size - pair[0].size % 8  # eight at a time are compared several times as fast
    parts = ((slice(whole), np.uint64), (slice(whole, None), np.uint8))
    return all(np.array_equal(*(x[part].view(kind) for x in pair)) for part, kind in parts)


def _refuse_values(site: Site, pair: PlacePair, tuned: Array) -> None:
    import numpy as np

    place = pair.base if np.isfinite(tuned).all() else pair.tuned
    raise NumericsError("the weights hold NaN or infinity", file=place.file.path, module=site.name)
