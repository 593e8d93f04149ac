"""ComfyUI's mxfp8: float8 e4m3 weights with a power of two for each 32 columns, `stem.weight_scale`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loramerge.checkpoint.marked import MarkedEncoding
from loramerge.checkpoint.micro import MX, GroupRows, tiled_shape, tiled_size
from loramerge.checkpoint.packing import PackedTensor
from loramerge.checkpoint.storage import HeldTensor, Writer
from loramerge.checkpoint.writers import GroupWriter
from loramerge.errors import FormatError
from loramerge.files.tensors import StoredTensor, Tensor

__all__ = ["STORAGE"]

_SCALE = ".weight_scale"
_TYPES = ("F8_E8M0", "U8")  # older files store powers of two as bytes


class _MxForm(MarkedEncoding):
    """Scales are stored as bytes, which all versions of ComfyUI and of safetensors read."""

    def settings(self, shape: tuple[int, ...]) -> Mapping[str, Any]:
        return {"format": "mxfp8"}

    def holds(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2 and not any(n % MX.group for n in shape)

    def stored(
        self, stem: str, name: str, shape: tuple[int, ...]
    ) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        tiles = tiled_shape(shape[0], shape[1] // MX.group)
        return (name, "F8_E4M3", shape), (stem + _SCALE, "U8", tiles)

    def writing(self, stem: str, shape: tuple[int, ...], marks: Mapping[str, bytes]) -> Writer:
        return GroupWriter(MX, shape, stem + _SCALE, "", marks)


class _Mxfp8:
    name = "mxfp8"
    order = -2  # before float8, whose scales are numbers
    encodings = (_MxForm("mxfp8"),)

    def recognise(self, tensors: Mapping[str, Tensor], name: str) -> HeldTensor | None:
        tensor, key = tensors[name], name.removesuffix(".weight") + _SCALE
        scales = tensors.get(key)
        if tensor.dtype != "F8_E4M3" or scales is None or scales.dtype not in _TYPES:
            return None
        wide = len(tensor.shape) == 2 and tensor.shape[1] % MX.group == 0
        if not wide or scales.size != tiled_size(tensor.shape[0], tensor.shape[1] // MX.group):
            raise FormatError(
                "the scales of this mxfp8 weight are not one for each 32 columns, in tiles",
                module=key,
                found=f"{list(scales.shape)} for a weight {list(tensor.shape)}",
            )
        if not isinstance(tensor, StoredTensor):
            return None
        return PackedTensor(GroupRows(tensor, MX, (key, scales)), (key,), scales.nbytes)

    def fixes_types(self, tensors: Mapping[str, Tensor]) -> bool:
        return any(
            t.dtype in _TYPES and name.endswith(_SCALE) and len(t.shape) == 2
            for name, t in tensors.items()
        )

    def partners(self, tensor: Tensor, name: str) -> tuple[str, ...]:
        return (name.removesuffix(".weight") + _SCALE,) if tensor.dtype == "F8_E4M3" else ()


STORAGE = _Mxfp8()
