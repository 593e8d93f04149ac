"""ComfyUI's int8_tensorwise: bytes with one scale, `stem.weight_scale`, for a tensor or for each row.

`stem.comfy_quant` names the format, and whether the columns of the weight were rotated before it was
quantised (convrot): in groups, by a symmetric Hadamard matrix, which the rotation back is, too.

Source: comfy-kitchen, `quantize_int8_convrot_weight`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loramerge.checkpoint.comfy import MARK, group_of, settings_of
from loramerge.checkpoint.marked import MarkedEncoding
from loramerge.checkpoint.packing import PackedTensor
from loramerge.checkpoint.rotated import RotatedRows
from loramerge.checkpoint.scaled import ScaledTensor, is_scale
from loramerge.checkpoint.storage import HeldTensor, Writer
from loramerge.checkpoint.writers import RowWriter
from loramerge.errors import FormatError
from loramerge.files.dtypes import is_float
from loramerge.files.tensors import StoredTensor, Tensor

__all__ = ["STORAGE"]

_SCALE, _FORMAT = ".weight_scale", "int8_tensorwise"
_GROUP, _LEAST = 256, 16


class _RowForm(MarkedEncoding):
    """Bytes with a scale for each row, rotated in the largest groups of columns that fit, or not."""

    def __init__(self, name: str, *, rotated: bool) -> None:
        super().__init__(name)
        self._rotated = rotated

    def _group(self, shape: tuple[int, ...]) -> int:
        group = _GROUP if self._rotated else 0
        while group > _LEAST and shape[1] % group:
            group //= 4
        return group

    def settings(self, shape: tuple[int, ...]) -> Mapping[str, Any]:
        turned = {"convrot": True, "convrot_groupsize": self._group(shape)}
        return {"format": _FORMAT, **(turned if self._rotated else {})}

    def holds(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2 and not (self._rotated and shape[1] % _LEAST)

    def stored(
        self, stem: str, name: str, shape: tuple[int, ...]
    ) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        return (name, "I8", shape), (stem + _SCALE, "F32", (shape[0], 1))

    def writing(self, stem: str, shape: tuple[int, ...], marks: Mapping[str, bytes]) -> Writer:
        return RowWriter(stem + _SCALE, shape, self._group(shape), marks)


class _Int8:
    name = "int8"
    order = 1
    encodings = (_RowForm("int8", rotated=False), _RowForm("int8-rotated", rotated=True))

    def recognise(self, tensors: Mapping[str, Tensor], name: str) -> HeldTensor | None:
        tensor, stem = tensors[name], name.removesuffix(".weight")
        scale, mark = tensors.get(stem + _SCALE), tensors.get(stem + MARK)
        if tensor.dtype != "I8" or scale is None or mark is None or not tensor.shape:
            return None
        settings = settings_of(tensors, stem)
        if settings["format"] != _FORMAT:
            raise FormatError(
                "this quantisation is not known",
                module=stem + MARK,
                expected=_FORMAT,
                found=settings["format"],
            )
        by_row = scale.shape[:1] == tensor.shape[:1] and scale.size == tensor.shape[0]
        if not is_float(scale.dtype) or not is_scale(scale, tensor):
            raise FormatError(
                "the scale of this int8 weight is neither one number nor one for each row",
                module=stem + _SCALE,
                found=f"{scale.dtype} {list(scale.shape)}",
            )
        if not settings.get("convrot"):
            return ScaledTensor(stem + _SCALE, scale, tensor)
        if not by_row or len(tensor.shape) != 2 or not isinstance(tensor, StoredTensor):
            raise FormatError(
                "the rotation of this weight cannot be undone",
                module=stem + MARK,
                expected="a scale for each row",
                found=f"{list(scale.shape)} for a weight {list(tensor.shape)}",
            )
        group = group_of(settings, tensor.shape[1], stem + MARK)
        rows = RotatedRows(tensor, stem + _SCALE, scale, group)
        return PackedTensor(rows, (stem + _SCALE,), scale.nbytes)

    def fixes_types(self, tensors: Mapping[str, Tensor]) -> bool:
        return any(
            t.dtype == "I8" and f"{name.removesuffix('.weight')}{MARK}" in tensors
            for name, t in tensors.items()
        )

    def partners(self, tensor: Tensor, name: str) -> tuple[str, ...]:
        return (name.removesuffix(".weight") + _SCALE,) if tensor.dtype == "I8" else ()


STORAGE = _Int8()
