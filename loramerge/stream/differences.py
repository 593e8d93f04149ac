"""The difference of two checkpoints, module by module: matched from headers, read in blocks of rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, NamedTuple

from loramerge.adapter import Site
from loramerge.algebra.extract import Change
from loramerge.algebra.noise import NoiseSums, precision_of, spacing
from loramerge.checkpoint import Checkpoint, Place
from loramerge.checkpoint.generic import model_config
from loramerge.checkpoint.storages import quantised_by
from loramerge.dialects import Dialect
from loramerge.dialects.detection import Detection
from loramerge.errors import FamilyError, FormatError, NumericsError, Setting, ShapeError, listed
from loramerge.families import Family, Parameter
from loramerge.stream.reading import read_weights, stored_rows
from loramerge.stream.walk import BLOCK_ELEMENTS, Buffers

__all__ = ["PairedSite", "Pairing", "PlacePair", "Sort", "energy_of", "paired", "read_change"]

# what a parameter is to extraction: a matrix with a low-rank form, or one of what has none
Sort = Literal["matrix", "bias", "norm", "embedding", "table"]

_SORTS: Mapping[str, Sort] = {
    "linear": "matrix", "conv": "matrix", "norm": "norm", "embedding": "embedding", "matrix": "table",
}  # fmt: skip
_EMBEDDINGS = ("wte", "wpe")  # what language models call them, beside names with "embed" in them
_TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # store (in, out)
_NOISY = 0.5  # share of the energy that rounding should have, below which it is something else
_SPREAD = 4.0  # times 1/√n: how far the energy of n roundings may be below the expected one
_SUMMED = 1 << 13  # squares that are added in the type of the values
_SAFE = 1e-24  # squares of float32 that add up to less may have vanished
_WITHIN = 1.001  # forgives the rounding of scales and sums in float32
_FEW = 1 / (
    6 * _WITHIN**2
)  # share of equal weights up to which a step of one is no sign of rounding

Array = Any  # numpy.ndarray


class PlacePair(NamedTuple):
    """The places of one parameter in both checkpoints."""

    tuned: Place
    base: Place


class PairedSite(NamedTuple):
    """The parameters of a site, one above the other.

    Args:
        shape: `(out, in)`, `(out, in, kh, kw)` or `(n,)`.
        sort: what they are to extraction.
    """

    site: Site
    pairs: tuple[PlacePair, ...]
    shape: tuple[int, ...]
    sort: Sort

    @property
    def flat_shape(self) -> tuple[int, int]:
        """`(out, in·kh·kw)`; a vector counts as one column."""
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def stretches(self) -> Iterator[tuple[int, PlacePair]]:
        """Yield the row at which each parameter begins, and its places."""
        start = 0
        for pair in self.pairs:
            yield start, pair
            start += pair.tuned.shape[0]


@dataclass(frozen=True)
class Pairing:
    """The common sites of two checkpoints.

    Args:
        detection: the family that both are of.
        groups: in the order of the family.
        one_side: names of parameters that only one of them has, and that are left out.
        components: components that only one of them has.
        outside: number of tensors that no module of the family names, in the tuned checkpoint.
        dtypes: safetensors names of the types of all parameters.
    """

    detection: Detection
    groups: tuple[PairedSite, ...]
    one_side: list[str]
    components: list[str]
    outside: int
    dtypes: set[str] = field(default_factory=set)


def paired(
    tuned: Checkpoint, base: Checkpoint, target: Dialect | None, *, skip: Sequence[str] = ()
) -> Pairing:
    """Match the parameters of two checkpoints of one family, whatever their layouts; headers only.

    Args:
        target: the dialect that will be written; parameters that it stores fused are one site.
        skip: components of which one of them may lack parameters.

    Raises:
        FamilyError: if they belong to different families, or to one whose layout is not verified.
        FormatError: if one lacks parameters that the other has, or holds them in an unknown way.
        ShapeError: if a parameter has two shapes.
    """
    candidates = _common_family(tuned, base)
    naming = candidates[0] if candidates else None
    components = sorted(tuned.layouts.keys() ^ base.layouts.keys())
    keys = [key for key in tuned.slots if key in base.slots and _kind(naming, tuned, *key)]
    alone = [key for key in chain(tuned.slots, base.slots)
             if (key in tuned.slots) != (key in base.slots)
             and key[0].partition(".")[0] not in components]  # fmt: skip
    _refuse_missing(tuned, base, alone, skip)
    pairs = {key: PlacePair(tuned.slots[key][0], base.slots[key][0]) for key in keys}
    for (module, parameter), pair in pairs.items():
        _check(tuned, base, f"{module}.{parameter}", pair)
    groups = tuple(_groups(pairs, naming, tuned, target))
    named = {(place.file, place.name) for places in tuned.slots.values() for place in places}
    outside = sum(
        (file, name) not in named for file in tuned.files.weights for name in file.open()[0]
    )
    return Pairing(
        Detection(candidates, f"that of {tuned.path.name}"),
        groups,
        [f"{module}.{parameter}" for module, parameter in alone],
        components,
        outside,
        {place.tensor.dtype for pair in pairs.values() for place in pair},
    )


def _common_family(tuned: Checkpoint, base: Checkpoint) -> tuple[Family, ...]:
    common = tuple(family for family in tuned.candidates if family in base.candidates)
    if not common and (tuned.candidates or base.candidates):
        raise FamilyError(
            "the checkpoints belong to different families",
            file=f"{tuned.path} and {base.path}",
            expected=f"{base.family_name} ({base.reason})",
            found=f"{tuned.family_name} ({tuned.reason})",
            hint="give the base that was tuned",
        )
    if common and not common[0].proven:
        raise FamilyError(
            f"the family {common[0].name} is read-only: the layout of its files is not verified",
            file=tuned.path,
        )
    kind = "" if common else model_config(tuned.files).get("model_type", "")
    if kind in _TRANSPOSED:
        raise FamilyError(
            f"models of type {kind} store their weights transposed, which is not supported here",
            file=tuned.path,
        )
    return common


def _refuse_missing(
    tuned: Checkpoint, base: Checkpoint, alone: Sequence[tuple[str, Parameter]], skip: Sequence[str]
) -> None:
    refused = [key for key in alone if key[0].partition(".")[0] not in skip and "all" not in skip]
    if not refused:
        return
    lacking = base if refused[0] in tuned.slots else tuned
    names = [f"{m}.{p}" for m, p in refused if ((m, p) in tuned.slots) == (lacking is base)]
    count = f"{len(names)} parameter{'s'[: len(names) > 1]}"
    raise FormatError(
        f"the checkpoint lacks {count} that the other one has",
        file=lacking.path,
        module=listed(names, 4),
        hint=("leave them out with ", Setting("skip_missing", "all"), ", if the rest is enough"),
    )


def _check(tuned: Checkpoint, base: Checkpoint, name: str, pair: PlacePair) -> None:
    for place in pair:
        if place.held is None:
            raise FormatError(
                "the weights are stored in a way that cannot be read",
                file=place.file.path,
                module=name,
                found=quantised_by(place.file.open()[0], place.name),
                hint="give the model that it was quantised from",
            )
    if pair.tuned.shape != pair.base.shape and _squeezed(pair.tuned) != _squeezed(pair.base):
        raise ShapeError(
            "a weight has different shapes in the two checkpoints",
            file=tuned.path,
            module=name,
            expected=f"{list(pair.base.shape)}, as in {base.path.name}",
            found=list(pair.tuned.shape),
            hint="give the base that was tuned",
        )


def _squeezed(place: Place) -> tuple[int, ...]:
    """Return a shape without a kernel of 1×1, which layouts may leave out."""
    shape = place.shape
    return shape[:2] if set(shape[2:]) <= {1} else shape


def _kind(
    naming: Family | None, tuned: Checkpoint, module: str, parameter: Parameter
) -> Sort | None:
    """Return what a parameter is to extraction, None for other tensors."""
    if parameter == "base":
        return None
    if parameter == "bias":
        return "bias"
    if naming is not None:
        found = naming.find(module)
        return None if found is None else _SORTS[found.layer]
    last = module.rpartition(".")[2]
    if "embed" in last or last in _EMBEDDINGS:
        return "embedding"
    axes = len(tuned.slots[module, parameter][0].shape)
    return "norm" if axes == 1 else "matrix" if axes == 2 else "table"


def _groups(
    pairs: Mapping[tuple[str, Parameter], PlacePair],
    naming: Family | None,
    tuned: Checkpoint,
    target: Dialect | None,
) -> Iterator[PairedSite]:
    """Yield the sites, those that the target stores fused as one where all their sorts are there."""
    layout = target.layout(naming) if naming is not None and target is not None else {}
    done: set[tuple[str, Parameter]] = set()
    for (module, parameter), pair in pairs.items():
        if (module, parameter) in done:
            continue
        kind = _kind(naming, tuned, module, parameter)
        assert kind is not None
        shape = _full_shape(naming, module, parameter, pair)
        fused = layout.get(module)
        keys = [(m, parameter) for m in fused.modules] if fused is not None else []
        if fused is None or kind not in ("matrix", "bias") or any(k not in pairs for k in keys):
            yield PairedSite(Site((module,), parameter), (pair,), shape, kind)
            continue
        done.update(keys)
        found = tuple(pairs[key] for key in keys)
        rows = sum(one.tuned.shape[0] for one in found)
        site = Site(fused.modules, parameter, fused.spans)
        yield PairedSite(site, found, (rows, *shape[1:]), kind)


def _full_shape(
    naming: Family | None, module: str, parameter: Parameter, pair: PlacePair
) -> tuple[int, ...]:
    """Return a parameter's shape with the kernel that its layer has, also where it is left out."""
    shape = pair.tuned.shape
    known = naming.find(module) if naming is not None and parameter == "weight" else None
    if known is not None and len(known.shape) != len(shape) and set(shape[2:]) <= {1}:
        return (*shape[:2], *(1,) * (len(known.shape) - 2))
    return shape


# ---- reading


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
    if all(_same_bytes(pair) for pair in group.pairs):
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
    if all(_same_bytes(pair) for pair in group.pairs):
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
        plain = [_plain(place) for place in pair]
        for start in range(0, rows, max(1, height)):
            stop = min(start + height, rows)
            tuned, base = (read(start, stop).reshape(stop - start, columns) for read in readers)
            place = None if out is None else out[begin + start : begin + stop]
            with np.errstate(invalid="ignore", over="ignore"):
                values = np.subtract(tuned, base, out=place)
                energy = _energy(values)
            if not math.isfinite(energy):
                _refuse_values(group.site, pair, tuned)
            found = _rounding(pair, plain, start, stop, tuned, base, values) if noise else _NOTHING
            yield _Block(begin + start, values, energy, *found)


def _energy(values: Array) -> float:
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


def _rounding(
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
        spacing(weights, name).reshape(weights.shape) if bare else _steps(place, start, stop)
        for place, name, weights, bare in zip(pair, names, (tuned, base), plain, strict=True)
    ]
    variances = (steps[0] ** 2 + steps[1] ** 2) / 12
    within = bool((np.abs(values) <= _WITHIN / 2 * (steps[0] + steps[1])).all())
    coarser = names[int(steps[1].sum() > steps[0].sum())]
    return variances, within, frozenset({coarser})


def _steps(place: Place, start: int, stop: int) -> Array:
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


def _plain(place: Place) -> bool:
    """Return whether the stored numbers are the weights."""
    held = place.require_held()
    return held.packing is None and held.codec(place.tensor.dtype).plain


def _same_bytes(pair: PlacePair) -> bool:
    """Return whether both checkpoints hold the same bytes for a parameter, block by block."""
    import numpy as np

    tuned, base = pair
    alike = (
        tuned.tensor.dtype == base.tensor.dtype
        and tuned.transposed == base.transposed
        and tuned.swapped == base.swapped
        and tuned.heads == base.heads
        and tuned.tensor.shape[1:] == base.tensor.shape[1:]
        and _plain(tuned)
        and _plain(base)
    )
    if not alike:
        return False
    readers = [stored_rows(place.tensor) for place in pair]
    (first, last), (other, _) = tuned.rows, base.rows
    columns = max(1, tuned.tensor.size // max(1, tuned.tensor.shape[0]))
    step = max(1, BLOCK_ELEMENTS // columns)
    for start in range(first, last, step):
        stop = min(start + step, last)
        ours = readers[0](start, stop).view(np.uint8)
        theirs = readers[1](start - first + other, stop - first + other).view(np.uint8)
        if not np.array_equal(ours, theirs):
            return False
    return True


def _refuse_values(site: Site, pair: PlacePair, tuned: Array) -> None:
    import numpy as np

    place = pair.base if np.isfinite(tuned).all() else pair.tuned
    raise NumericsError("the weights hold NaN or infinity", file=place.file.path, module=site.name)
