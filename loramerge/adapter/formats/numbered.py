"""Factors that a file holds in numbered parts: those of DyLoRA, and those of layers trained in parts.

DyLoRA learns ranks one after the other and keeps each in a parameter of its own: `X.lora_A.N`
`(1, in, …)` and `X.lora_B.N` `(out, 1, …)`. They are one factor each: A stacked by rows, B by
columns.

Layers that are fused in the checkpoint (`qkv`) may be trained as if they were not:
`X.lora_down.N.weight` `(r, in)` and `X.lora_up.N.weight` `(out_N, r)` for each range of rows, with one
alpha for all. Together they are factors of rank N·r whose up is block-diagonal, and whose alpha is N
times the stated one.

Trainers join the parts when they save a network; who saves its parameters keeps them apart.

Source: sd-scripts 48d368fa, `networks/dylora.py` (`DyLoRAModule.forward`) and `networks/lora_flux.py`
(`LoRAModule.forward`), by their meaning.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loramerge.files.tensors import RawTensor, Tensor
from loramerge.files.views import Derived, stacked
from loramerge.records import NamedTuple

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["join_numbered"]

_DOWN, _UP, _ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"


class _Sort(NamedTuple):
    """One way of spelling parts: `STEM + down + N + end`.

    Args:
        apart: each part has rows of its own.
    """

    down: str
    up: str
    end: str
    apart: bool


_SORTS = (
    _Sort(".lora_A.", ".lora_B.", "", apart=False),
    _Sort(".lora_down.", ".lora_up.", ".weight", apart=True),
)
_Parts = dict[int, str]  # number → key


def join_numbered(tensors: dict[str, Tensor]) -> None:
    """Replace numbered parts by whole factors; parts that do not fit together stay."""
    numbered = [key for key in tensors if key.removesuffix(".weight")[-1:].isdigit()]
    joined: dict[str, dict[str, Tensor]] = {}  # the first of some parts → what stands for them
    gone: set[str] = set()
    for sort in _SORTS:
        for stem, (downs, ups) in _groups(numbered, sort).items():
            pairs = _pairs(tensors, downs, ups, sort)
            if pairs is None or stem + _DOWN in tensors or stem + _UP in tensors:
                continue
            parts = {*downs.values(), *ups.values()}
            joined[next(iter(downs.values()))] = _whole(stem, pairs, sort)
            gone |= parts
            alpha = tensors.get(stem + _ALPHA)
            if sort.apart and alpha is not None and alpha.size == 1:
                value = struct.pack("<f", alpha.item() * len(pairs))
                tensors[stem + _ALPHA] = RawTensor(value, "F32", alpha.shape)
    if joined:
        before = dict(tensors)
        tensors.clear()
        for key, tensor in before.items():
            tensors.update(joined.get(key, {}) if key in gone else {key: tensor})


def _groups(keys: Sequence[str], sort: _Sort) -> dict[str, tuple[_Parts, _Parts]]:
    """Return stem → the parts of down, and those of up."""
    found: dict[str, tuple[_Parts, _Parts]] = {}
    for key in keys:
        for side, word in enumerate((sort.down, sort.up)):
            stem, infix, rest = key.rpartition(word)
            number = rest.removesuffix(sort.end)
            if infix and rest.endswith(sort.end) and number.isascii() and number.isdigit():
                found.setdefault(stem, ({}, {}))[side][int(number)] = key
    return found


def _pairs(
    tensors: Mapping[str, Tensor], downs: _Parts, ups: _Parts, sort: _Sort
) -> list[tuple[Tensor, Tensor]] | None:
    """Return (down, up) of each part in order, or None if they are not parts of one module."""
    if not downs or downs.keys() != ups.keys() or set(downs) != set(range(len(downs))):
        return None
    pairs = [(tensors[downs[number]], tensors[ups[number]]) for number in range(len(downs))]
    axes = {len(tensor.shape) for pair in pairs for tensor in pair}
    if len(axes) > 1 or axes < {2}:
        return None
    inputs = {(down.dtype, down.shape[1:]) for down, _ in pairs}
    outputs = {(up.dtype, () if sort.apart else up.shape[:1], up.shape[2:]) for _, up in pairs}
    fits = all(up.shape[1] == down.shape[0] for down, up in pairs)
    return pairs if fits and len(inputs) == len(outputs) == 1 else None


def _whole(stem: str, pairs: Sequence[tuple[Tensor, Tensor]], sort: _Sort) -> dict[str, Tensor]:
    return {
        stem + _DOWN: stacked([down for down, _ in pairs]),
        stem + _UP: _side_by_side([up for _, up in pairs], apart=sort.apart),
    }


def _side_by_side(ups: Sequence[Tensor], *, apart: bool) -> Tensor:
    """Return parts as columns of one factor; those that stand apart have rows of their own, too."""
    first = ups[0]
    rank = sum(up.shape[1] for up in ups)
    rows = sum(up.shape[0] for up in ups) if apart else first.shape[0]
    shape = (rows, rank, *first.shape[2:])
    return Derived(first.dtype, shape, _filled(ups, shape, apart=apart))


def _filled(ups: Sequence[Tensor], shape: tuple[int, ...], *, apart: bool) -> Callable[[], Array]:
    def make() -> Array:
        import numpy as np

        parts = [up.numpy() for up in ups]
        found = np.zeros(shape, parts[0].dtype)
        row = column = 0
        for part in parts:
            found[row : row + part.shape[0], column : column + part.shape[1]] = part
            row, column = row + (part.shape[0] if apart else 0), column + part.shape[1]
        return found

    return make
