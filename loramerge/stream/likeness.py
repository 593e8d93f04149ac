"""The distance of two checkpoints, parameter by parameter, read once in blocks of rows.

Where both store the same bytes nothing is computed: such a parameter counts as equal, and is in no
norm. Distances are those of the parameters that differ.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from loramerge.adapter import Site
from loramerge.adapter.delta import ReadRows
from loramerge.algebra.compare import block_of
from loramerge.algebra.noise import precision_of
from loramerge.algebra.workers import ordered, steady_heap
from loramerge.checkpoint import Checkpoint, CheckpointFile, Place
from loramerge.checkpoint.storages import quantised_by
from loramerge.events import Notify, ignore
from loramerge.families.beside import VAE, sort_of, vae_name
from loramerge.files.dtypes import DTYPES, numpy_dtype
from loramerge.files.halves import widen
from loramerge.files.tensors import StoredTensor, Tensor
from loramerge.stream.counterparts import (
    counterparts,
    named,
    plain_shape,
    require_one_family,
    scales_of,
)
from loramerge.stream.differences import energy_in, is_bare, rounding_in
from loramerge.stream.gaps import AVERAGE, OTHER, Gap, Likeness, Measured
from loramerge.stream.pairing import PlacePair
from loramerge.stream.reading import read_weights, stored_rows
from loramerge.stream.same import same_raw, same_stored
from loramerge.stream.walk import Buffers

__all__ = ["likeness", "part_of"]

_BLOCK = 1 << 16  # elements whose squares are added at a time
_READ = (
    4  # blocks that are read and subtracted at a time: fewer steps, of which each waits for others
)
_SAFE = 1e-24  # squares of float32 that add up to less may have vanished
_WIDE = ("F16", "F32", "F64")  # types that may hold weights that were rounded to a narrower one


_Pair = tuple[Site, str, PlacePair]  # a parameter, the part that it belongs to, and its places


def likeness(
    a: Checkpoint,
    b: Checkpoint,
    *,
    skip: Collection[tuple[CheckpointFile, str, tuple[int, int]]] = (),
    threads: int | None = None,
    notify: Notify = ignore,
) -> Likeness:
    """Compare two checkpoints of one family, in any layouts and storages.

    Args:
        skip: rows of tensors of `a` that are not compared.

    Raises:
        FamilyError: if they belong to different families.
    """
    steady_heap()
    require_one_family([a, b])
    b = b.among(a.candidates)
    found = Likeness()
    paired = counterparts([a, b])
    work: list[_Pair] = []
    for part in paired.all_parts():
        one, other = part.places
        assert one is not None
        if (one.file, one.name, one.rows) in skip:
            continue
        where = part_of(part.site, one.file, one.name, a)
        if other is None:
            found.only_a.setdefault(where, []).append(part.site.name)
        elif plain_shape(one.shape) != plain_shape(other.shape):
            shapes = f"{list(one.shape)} and {list(other.shape)}"
            found.misfits.append(f"{part.site.name}: {shapes}")
        elif (one.held is None or other.held is None) and not same_raw(one.tensor, other.tensor):
            unread = one if one.held is None else other
            sort = quantised_by(unread.file.open()[0], unread.name)
            found.unreadable.append(f"{part.site.name} ({sort})")
        else:
            work.append((part.site, where, PlacePair(one, other)))
    for name, file in paired.extra.get(1, {}).items():
        found.only_b.setdefault(part_of(Site((name,)), file, name, b), []).append(name)
    work += _add_other(found, a, b)
    measure = partial(_measured, buffers=Buffers())
    found.measured = list(ordered(measure, work, threads=threads, task="comparing", notify=notify))
    return found


def part_of(site: Site, file: CheckpointFile, name: str, checkpoint: Checkpoint) -> str:
    """Return the part of a checkpoint that a tensor belongs to, in the words of its layouts."""
    if vae_name(name, file.component) is not None:
        return VAE
    first = site.modules[0].partition(".")[0]
    if first in checkpoint.layouts:
        return first
    if file.component:
        return file.component
    return OTHER if checkpoint.candidates else next(iter(checkpoint.layouts), OTHER)


# ---- one parameter


def _measured(item: _Pair, buffers: Buffers) -> Measured:
    site, part, pair = item
    _expect(pair)
    size = math.prod(pair.tuned.shape)
    gap = Gap(tensors=1, elements=size)
    if not same_stored(pair):
        gap = _gap(pair, size, buffers)
    types = tuple(DTYPES[place.tensor.dtype].word for place in pair)
    plain = plain_shape(pair.tuned.shape)
    block = block_of(site) if site.modules[0].partition(".")[0] == part else part
    return Measured(site, part, block, gap, (types[0], types[1]), len(plain) > 1)


def _expect(pair: PlacePair) -> None:
    """Let the system fetch the rows of both places while the first of them are compared."""
    for place in pair:
        tensor = place.tensor
        if isinstance(tensor, StoredTensor) and tensor.nbytes:
            height = tensor.nbytes // max(1, tensor.shape[0])
            first, last = place.rows
            tensor.source.expect(tensor.info.start + first * height, (last - first) * height)


def _gap(pair: PlacePair, size: int, buffers: Buffers) -> Gap:
    """Return the distance of one parameter, by its numbers."""
    import numpy as np

    dtypes = [place.tensor.dtype for place in pair]
    kind = "float64" if "F64" in dtypes else "float32"
    plain = [is_bare(place) for place in pair]
    noisy: bool | None = None if all(plain) and dtypes[0] == dtypes[1] else True
    a = b = moved = 0.0
    within = True
    readers = [
        _reader(place, kind, f"{number}", buffers, bare=bare)
        for number, (place, bare) in enumerate(zip(pair, plain, strict=True))
    ]
    step = _rows_of_block(pair)
    rows = pair.tuned.shape[0]
    for first in range(0, rows, _READ * step):
        last = min(first + _READ * step, rows)
        ours, theirs = (read(first, last) for read in readers)
        values = buffers.get("values", np.dtype(kind), ours.shape)
        with np.errstate(invalid="ignore", over="ignore"):
            np.subtract(ours, theirs, out=values)
            for start in range(0, last - first, step):
                blocks = [one[start : start + step] for one in (ours, theirs, values)]
                energies = [_energy(block) for block in blocks]
                a, b, moved = a + energies[0], b + energies[1], moved + energies[2]
                if noisy is None:
                    noisy = _was_rounded(blocks[0], blocks[1], dtypes)
                if noisy and within and math.isfinite(energies[2]):
                    begin = first + start
                    found = rounding_in(pair, plain, begin, min(begin + step, last), *blocks)
                    within = found[1]
    if moved == 0.0:
        return Gap(tensors=1, elements=size)
    rounded = int(bool(noisy) and within and math.isfinite(moved))
    return Gap(1, 1, rounded, a, b, moved, size, size)


def _reader(place: Place, kind: str, use: str, buffers: Buffers, *, bare: bool) -> ReadRows:
    """Return the function that reads rows, into a buffer where they lie as they are."""
    import numpy as np

    columns = max(1, math.prod(place.shape[1:]))
    mixed = place.transposed or place.swapped or place.heads or not bare
    if mixed or not isinstance(place.tensor, StoredTensor):
        read = read_weights([(0, place)], kind)
        return lambda start, stop: np.ascontiguousarray(read(start, stop).reshape(-1, columns))
    stored, dtype = stored_rows(place.tensor), numpy_dtype(place.tensor.dtype)
    first = place.rows[0]

    def fill(start: int, stop: int) -> Any:
        shape = (stop - start, columns)
        raw = stored(first + start, first + stop, buffers.get(f"read {use}", dtype, shape))
        out = buffers.get(f"floats {use}", np.dtype(kind), shape)
        widen(raw, out)
        return out

    return fill


def _energy(values: Any) -> float:
    """Return ‖values‖² of a contiguous block."""
    import numpy as np

    flat = values.reshape(-1)
    found = float(np.dot(flat, flat))
    return found if _SAFE < found < 1 / _SAFE else energy_in(values)


def _was_rounded(ours: Any, theirs: Any, dtypes: Sequence[str]) -> bool:
    """Return whether one of two blocks of one wide type holds numbers of a narrower type alone."""
    wide = dtypes[0] in _WIDE
    return wide and precision_of(ours, dtypes[0]) != precision_of(theirs, dtypes[1])


def _rows_of_block(pair: PlacePair) -> int:
    columns = max(1, math.prod(pair.tuned.shape[1:]))
    whole = any(place.transposed or place.heads for place in pair)
    return max(1, pair.tuned.shape[0] if whole else _BLOCK // columns)


# ---- tensors beside the networks


@dataclass(frozen=True)
class _Other:
    """A tensor beside the networks that a family describes."""

    part: str
    file: CheckpointFile
    name: str

    @property
    def tensor(self) -> Tensor:
        return self.file.open()[0][self.name]

    @property
    def place(self) -> Place:
        tensor = self.tensor
        shaped = tensor if tensor.shape else tensor.reshaped((1,))
        return Place(self.file, shaped, self.name)


def _others(checkpoint: Checkpoint) -> dict[tuple[str, str], _Other]:
    """Return the tensors of the VAE, of running averages, and constants, by names without prefixes."""
    found = {}
    for file in checkpoint.files.weights:
        scales = scales_of(file)
        for name in file.open()[0]:
            sort = sort_of(name, file.component)
            bare = vae_name(name, file.component) or name
            if name not in scales and sort != "weight":
                part = {"vae": VAE, "average": AVERAGE}.get(sort, OTHER)
                found[part, bare] = _Other(part, file, name)
    return found


def _add_other(found: Likeness, a: Checkpoint, b: Checkpoint) -> list[_Pair]:
    """Compare constants by their bytes; return what else can be measured."""
    ours, theirs = _others(a), _others(b)
    pairs: list[_Pair] = []
    for key, one in ours.items():
        other = theirs.get(key)
        if other is None:
            found.only_a.setdefault(one.part, []).append(one.name)
        elif one.part == OTHER:
            found.constants += 1
            if not same_raw(one.tensor, other.tensor):
                found.other_constants.append(one.name)
        elif plain_shape(one.tensor.shape) != plain_shape(other.tensor.shape):
            shapes = f"{list(one.tensor.shape)} and {list(other.tensor.shape)}"
            found.misfits.append(f"{one.name}: {shapes}")
        else:
            pairs.append((named(one.name, ""), one.part, PlacePair(one.place, other.place)))
    for key, one in theirs.items():
        if key not in ours:
            found.only_b.setdefault(one.part, []).append(one.name)
    return pairs
