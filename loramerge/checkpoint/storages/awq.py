"""ComfyUI's awq_w4a16: `weight = (code - 8) · scale + zero point`, two codes of 4 bits in a byte.

`stem.weight_scale` and `stem.weight_zero` hold a number for each group of columns and each row.

Source: comfy-kitchen, `TensorCoreAWQW4A16Layout`.
"""

from __future__ import annotations

from collections.abc import Mapping

from loramerge.checkpoint.comfy import four_bits
from loramerge.checkpoint.storage import HeldTensor
from loramerge.checkpoint.zero_points import ByRows, ZeroPointTensor
from loramerge.errors import FormatError
from loramerge.files.tensors import StoredTensor, Tensor

__all__ = ["STORAGE"]

_SCALE, _ZEROS, _FORMAT = ".weight_scale", (".weight_zero", ".weight_zeros"), "awq_w4a16"


class _Awq:
    name = "awq-w4a16"
    order = -4  # before int8, whose marks it has

    def recognise(self, tensors: Mapping[str, Tensor], name: str) -> HeldTensor | None:
        weight, stem = self.weight(tensors, name), name.removesuffix(".weight")
        if weight is None:
            return None
        zero = next((stem + end for end in _ZEROS if stem + end in tensors), stem + _ZEROS[0])
        scales, zeros = tensors.get(stem + _SCALE), tensors.get(zero)
        rows, columns = weight.shape
        groups = scales.shape[0] if scales is not None and len(scales.shape) == 2 else 0
        if (
            scales is None
            or zeros is None
            or not groups
            or columns % groups
            or scales.shape != (groups, rows)
            or zeros.shape != scales.shape
            or zeros.dtype != scales.dtype
        ):
            raise FormatError(
                "the scales and zero points of this 4-bit weight do not fit it",
                module=stem + _SCALE,
                expected=f"two tensors of a number for each group of columns and each of {rows} rows",
                found=", ".join(
                    str(list(t.shape)) if t is not None else "none" for t in (scales, zeros)
                ),
            )
        return ZeroPointTensor(
            (name, stem + _SCALE, zero),
            (weight, scales, zeros),
            ByRows((rows, columns)),
            columns // groups,
        )

    def weight(self, tensors: Mapping[str, Tensor], name: str) -> StoredTensor | None:
        """Return the tensor with the type and shape of the weight; None for other weights."""
        return four_bits(tensors, name, _FORMAT)

    def fixes_types(self, tensors: Mapping[str, Tensor]) -> bool:
        return any(self.weight(tensors, name) is not None for name in tensors)

    def partners(self, tensor: Tensor, name: str) -> tuple[str, ...]:
        stem = name.removesuffix(".weight")
        return (
            (stem + _SCALE, *(stem + end for end in _ZEROS)) if tensor.dtype in ("I8", "U8") else ()
        )


STORAGE = _Awq()
