"""ComfyUI's int8_tensorwise: bytes with one scale, `stem.weight_scale`, for a tensor or for each row.

`stem.comfy_quant` names the format, and whether the columns of the weight were rotated before it was
quantised (convrot): in groups, by a symmetric Hadamard matrix, which the rotation back is, too.

Source: comfy-kitchen, `quantize_int8_convrot_weight`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loramerge.checkpoint.marked import MARK, MarkedEncoding
from loramerge.checkpoint.packing import PackedTensor
from loramerge.checkpoint.rotated import RotatedRows
from loramerge.checkpoint.scaled import ScaledTensor, is_scale
from loramerge.checkpoint.storage import HeldTensor, Writer
from loramerge.checkpoint.writers import RowWriter
from loramerge.errors import FormatError
from loramerge.files.dtypes import is_float
from loramerge.files.json_values import values_in
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
        settings = _settings(mark, stem + MARK)
        by_row = scale.shape[:1] == tensor.shape[:1] and scale.size == tensor.shape[0]
        if not is_float(scale.dtype) or not is_scale(scale, tensor):
            raise FormatError(
                "the scale of this int8 weight is neither one number nor one for each row",
                module=stem + _SCALE,
                found=f"{scale.dtype} {list(scale.shape)}",
            )
        if not settings.get("convrot"):
            return ScaledTensor(stem + _SCALE, scale, tensor)
        group = settings.get("convrot_groupsize", _GROUP)
        fits = type(group) is int and group > 0 and bin(group).count("1") == 1
        fits = fits and group.bit_length() % 2 == 1 and len(tensor.shape) == 2
        if (
            not fits
            or tensor.shape[1] % group
            or not by_row
            or not isinstance(tensor, StoredTensor)
        ):
            raise FormatError(
                "the rotation of this int8 weight cannot be undone",
                module=stem + MARK,
                expected="groups of 4, 16, 64, 256 or 1024 columns, and a scale for each row",
                found=f"groups of {group} for a weight {list(tensor.shape)}",
            )
        rows = RotatedRows(tensor, stem + _SCALE, scale, group)
        return PackedTensor(rows, (stem + _SCALE,), scale.nbytes)

    def fixes_types(self, tensors: Mapping[str, Tensor]) -> bool:
        return any(
            t.dtype == "I8" and f"{name.removesuffix('.weight')}{MARK}" in tensors
            for name, t in tensors.items()
        )

    def partners(self, tensor: Tensor, name: str) -> tuple[str, ...]:
        return (name.removesuffix(".weight") + _SCALE,) if tensor.dtype == "I8" else ()


def _settings(mark: Tensor, name: str) -> Mapping[str, Any]:
    """Return what a mark says of a weight, the parameters that it nests among the rest.

    Raises:
        FormatError: if it cannot be read, or names another format.
    """
    try:
        content = values_in(bytes(mark.raw()).decode("utf-8"))
        kind, inner = content["format"], content.get("params", {})
        found = {**(inner if isinstance(inner, dict) else {}), **content}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FormatError("the mark of a quantised weight cannot be read", module=name) from None
    if kind != _FORMAT:
        raise FormatError(
            "this quantisation is not known", module=name, expected=_FORMAT, found=kind
        )
    return found


STORAGE = _Int8()
