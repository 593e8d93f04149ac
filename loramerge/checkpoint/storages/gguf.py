"""Blocks of GGUF files: Q8_0, Q5_1, Q5_0, Q4_1, Q4_0 and the K types.

Types that are not listed here (IQ…, TQ…, MXFP4) are copied, and not changed. Plain floats of GGUF files
are `plain`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from loramerge.checkpoint.ggml import BLOCK_TYPES, BlockType
from loramerge.checkpoint.ggml_k import K_TYPES
from loramerge.checkpoint.packing import BlockRows, PackedTensor
from loramerge.checkpoint.storage import HeldTensor, Writer
from loramerge.checkpoint.writers import BlockWriter
from loramerge.files.dtypes import PACKED
from loramerge.files.forms import GGUF
from loramerge.files.tensors import StoredTensor, Tensor

__all__ = ["STORAGE"]

_KINDS = BLOCK_TYPES | K_TYPES


class _BlockForm:
    """One type of blocks."""

    suffix = GGUF
    dtype: ClassVar[None] = None
    shares = True

    def __init__(self, kind: BlockType) -> None:
        self.name, self._kind = kind.name, kind

    def holds(self, shape: tuple[int, ...]) -> bool:
        return len(shape) > 1 and math.prod(shape[1:]) % self._kind.elements == 0

    def entries(
        self, name: str, shape: tuple[int, ...]
    ) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        return ((name, self._kind.name, shape),)

    def writer(self, name: str, shape: tuple[int, ...]) -> Writer:
        return BlockWriter(self._kind, shape)


class _Gguf:
    name = "gguf"
    order = 10
    encodings = tuple(map(_BlockForm, _KINDS.values()))

    def recognise(self, tensors: Mapping[str, Tensor], name: str) -> HeldTensor | None:
        tensor = tensors[name]
        kind = _KINDS.get(tensor.dtype)
        if kind is None or not isinstance(tensor, StoredTensor):
            return None
        return PackedTensor(BlockRows(tensor, kind))

    def fixes_types(self, tensors: Mapping[str, Tensor]) -> bool:
        return any(tensor.dtype in PACKED for tensor in tensors.values())

    def partners(self, tensor: Tensor, name: str) -> tuple[str, ...]:
        return ()


STORAGE = _Gguf()
