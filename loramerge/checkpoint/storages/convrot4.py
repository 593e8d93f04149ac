"""ComfyUI's convrot_w4a4: two signed codes of 4 bits in a byte, with one scale for each row.

The columns of a weight are rotated in groups before it is quantised. `stem.comfy_quant` names the
format.

Source: comfy-kitchen, `quantize_convrot_w4a4_weight`.
"""

from __future__ import annotations

from collections.abc import Mapping

from loramerge.checkpoint.comfy import MARK, four_bits, group_of, settings_of
from loramerge.checkpoint.packing import PackedTensor
from loramerge.checkpoint.rotated import RotatedRows
from loramerge.checkpoint.storage import HeldTensor
from loramerge.errors import FormatError
from loramerge.files.dtypes import is_float
from loramerge.files.tensors import StoredTensor, Tensor

__all__ = ["STORAGE"]

_SCALE, _FORMAT = ".weight_scale", "convrot_w4a4"


class _Convrot4:
    name = "convrot-w4a4"
    order = -5  # before int8, whose marks it has

    def recognise(self, tensors: Mapping[str, Tensor], name: str) -> HeldTensor | None:
        weight, stem = self.weight(tensors, name), name.removesuffix(".weight")
        if weight is None:
            return None
        scale = tensors.get(stem + _SCALE)
        if scale is None or not is_float(scale.dtype) or scale.size != weight.shape[0]:
            raise FormatError(
                "this 4-bit weight has no scale for each row",
                module=stem + _SCALE,
                expected=f"float32 [{weight.shape[0]}]",
                found="nothing" if scale is None else f"{scale.dtype} {list(scale.shape)}",
            )
        group = group_of(settings_of(tensors, stem), weight.shape[1], stem + MARK)
        rows = RotatedRows(weight, stem + _SCALE, scale, group, bits=4)
        return PackedTensor(rows, (stem + _SCALE,), scale.nbytes)

    def weight(self, tensors: Mapping[str, Tensor], name: str) -> StoredTensor | None:
        """Return the tensor with the type and shape of the weight; None for other weights."""
        return four_bits(tensors, name, _FORMAT)

    def fixes_types(self, tensors: Mapping[str, Tensor]) -> bool:
        return any(self.weight(tensors, name) is not None for name in tensors)

    def partners(self, tensor: Tensor, name: str) -> tuple[str, ...]:
        return (name.removesuffix(".weight") + _SCALE,) if tensor.dtype in ("I8", "U8") else ()


STORAGE = _Convrot4()
