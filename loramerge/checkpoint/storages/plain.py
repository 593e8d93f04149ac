"""Weights that are stored as they are, as floats of any width."""

from __future__ import annotations

from collections.abc import Mapping

from loramerge.checkpoint.storage import Array, Codec, HeldTensor, Writer
from loramerge.files.dtypes import DTYPES, FLOATS, is_float
from loramerge.files.tensors import Tensor

__all__ = ["STORAGE"]


class _Held:
    beside: tuple[str, ...] = ()
    nbytes = 0
    marks: tuple[str, ...] = ()
    packing = None

    def dequantise(self, rows: Array, start: int) -> Array:
        return rows

    def codec(self, dtype: str) -> Codec:
        return _CODEC


class _Codec:
    plain = True
    changed = False

    def weights(self, stored: Array, start: int, out: Array) -> Array:
        return stored

    def add(self, stored: Array, asked: Array, start: int, out: Array) -> None:
        import numpy as np

        np.add(stored, asked, out=out)

    def fits(self, start: int, stop: int) -> bool:
        return True

    def change(self, rounded: Array, weights: Array, start: int) -> None:
        rounded -= weights

    def overflowed(self) -> bool:
        return False

    def beside(self) -> Mapping[str, bytes]:
        return {}


_HELD, _CODEC = _Held(), _Codec()


class _FloatForm:
    """One type of floats."""

    suffix = ""
    shares = False

    def __init__(self, dtype: str) -> None:
        self.name, self.dtype = DTYPES[dtype].word, dtype

    def holds(self, shape: tuple[int, ...]) -> bool:
        return True

    def entries(
        self, name: str, shape: tuple[int, ...]
    ) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        return ((name, self.dtype, shape),)

    def writer(self, name: str, shape: tuple[int, ...]) -> Writer:
        raise TypeError("plain floats are rounded as they are")


class _Plain:
    name = "plain"
    order = 100  # what no other storage claims
    encodings = tuple(map(_FloatForm, FLOATS))

    def recognise(self, tensors: Mapping[str, Tensor], name: str) -> HeldTensor | None:
        return _HELD if is_float(tensors[name].dtype) else None

    def fixes_types(self, tensors: Mapping[str, Tensor]) -> bool:
        return False

    def partners(self, tensor: Tensor, name: str) -> tuple[str, ...]:
        return ()


STORAGE = _Plain()
