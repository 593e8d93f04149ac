"""ComfyUI's nvfp4: two float4 numbers in a byte, `stem.weight_scale` for each 16 columns as float8, and
`stem.weight_scale_2` for the tensor, which stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loramerge.checkpoint.marked import MarkedEncoding
from loramerge.checkpoint.micro import NV, GroupRows, tiled_shape, tiled_size
from loramerge.checkpoint.packing import PackedTensor
from loramerge.checkpoint.storage import HeldTensor, Writer
from loramerge.checkpoint.writers import GroupWriter
from loramerge.errors import FormatError
from loramerge.files.tensors import StoredTensor, Tensor

__all__ = ["STORAGE"]

_SCALE, _WHOLE = ".weight_scale", ".weight_scale_2"
_TYPES = ("F8_E4M3", "U8")  # older files store float8 as bytes


class _NvForm(MarkedEncoding):
    """Float4 with scales of groups, and a scale of the tensor by its largest weight."""

    def settings(self, shape: tuple[int, ...]) -> Mapping[str, Any]:
        return {"format": "nvfp4"}

    def holds(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2 and not any(n % NV.group for n in shape)

    def stored(
        self, stem: str, name: str, shape: tuple[int, ...]
    ) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        tiles = tiled_shape(shape[0], shape[1] // NV.group)
        return (
            (name, "U8", (shape[0], shape[1] // NV.packed)),
            (stem + _SCALE, "F8_E4M3", tiles),
            (stem + _WHOLE, "F32", ()),
        )

    def writing(self, stem: str, shape: tuple[int, ...], marks: Mapping[str, bytes]) -> Writer:
        return GroupWriter(NV, shape, stem + _SCALE, stem + _WHOLE, marks)


class _Nvfp4:
    name = "nvfp4"
    order = -1
    encodings = (_NvForm("nvfp4"),)

    def recognise(self, tensors: Mapping[str, Tensor], name: str) -> HeldTensor | None:
        stem = name.removesuffix(".weight")
        scales, whole = tensors.get(stem + _SCALE), tensors.get(stem + _WHOLE)
        weight = self.weight(tensors, name)
        if weight is None or scales is None or whole is None:
            return None
        wide = weight.shape[1] % NV.group == 0
        if not wide or scales.size != tiled_size(weight.shape[0], weight.shape[1] // NV.group):
            raise FormatError(
                "the scales of this nvfp4 weight are not one for each 16 columns, in tiles",
                module=stem + _SCALE,
                found=f"{list(scales.shape)} for a weight {list(weight.shape)}",
            )
        factor = whole.item() if whole.size == 1 else 0.0
        if not 0 < factor < float("inf"):
            raise FormatError(
                "the scale of a quantised weight is not a positive number", module=stem + _WHOLE
            )
        beside = {stem + _SCALE: scales, stem + _WHOLE: whole}
        rows = GroupRows(weight, NV, *beside.items())
        return PackedTensor(rows, tuple(beside), scales.nbytes + whole.nbytes)

    def weight(self, tensors: Mapping[str, Tensor], name: str) -> StoredTensor | None:
        """Return the tensor with the type and shape of the weight; None for other weights."""
        tensor, stem = tensors[name], name.removesuffix(".weight")
        scales = tensors.get(stem + _SCALE)
        known = scales is not None and scales.dtype in _TYPES and stem + _WHOLE in tensors
        if not known or tensor.dtype != "U8" or len(tensor.shape) != 2:
            return None
        if not isinstance(tensor, StoredTensor):
            return None
        shape = (tensor.shape[0], tensor.shape[1] * NV.packed)
        return tensor.seen_as("F4", shape)

    def fixes_types(self, tensors: Mapping[str, Tensor]) -> bool:
        return any(name.endswith(_WHOLE) for name in tensors)

    def partners(self, tensor: Tensor, name: str) -> tuple[str, ...]:
        stem = name.removesuffix(".weight")
        return (stem + _SCALE, stem + _WHOLE) if tensor.dtype == "U8" else ()


STORAGE = _Nvfp4()
