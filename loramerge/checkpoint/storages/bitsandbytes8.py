"""The int8 of bitsandbytes: `W = stored · stem.SCB / 127`, one SCB for each row.

`stem.weight_format` names the order of the bytes; only that of rows, 0, is read.
"""

from __future__ import annotations

from collections.abc import Mapping

from loramerge.checkpoint.scaled import ScaledTensor
from loramerge.checkpoint.storage import HeldTensor
from loramerge.errors import FormatError
from loramerge.files.tensors import Tensor

__all__ = ["STORAGE"]

_SCALE, _FORMAT = ".SCB", ".weight_format"


class _Bitsandbytes8:
    name = "bitsandbytes-int8"
    order = 3

    def recognise(self, tensors: Mapping[str, Tensor], name: str) -> HeldTensor | None:
        tensor, stem = tensors[name], name.removesuffix(".weight")
        scale = tensors.get(stem + _SCALE)
        if tensor.dtype != "I8" or scale is None or not tensor.shape:
            return None
        order = tensors.get(stem + _FORMAT)
        rows = tensor.shape[0]
        if scale.dtype != "F32" or scale.size != rows or (order is not None and order.item() != 0):
            raise FormatError(
                "this int8 weight of bitsandbytes is not stored row by row with a scale for each",
                module=stem + _SCALE,
                expected=f"F32 [{rows}]",
                found=f"{scale.dtype} {list(scale.shape)}",
            )
        marks = () if order is None else (stem + _FORMAT,)
        return ScaledTensor(stem + _SCALE, scale, tensor, 1 / 127, marks)

    def fixes_types(self, tensors: Mapping[str, Tensor]) -> bool:
        return any(name.endswith(_SCALE) for name in tensors)

    def partners(self, tensor: Tensor, name: str) -> tuple[str, ...]:
        return (name.removesuffix(".weight") + _SCALE,) if tensor.dtype == "I8" else ()


STORAGE = _Bitsandbytes8()
