"""ComfyUI's asym_w4a8_int8, at 4 or 6 bits: `stem.weight_s_rel`, `stem.weight_s_channel` and, for codes
of a table, `stem.weight_codebook`. See `relative`.

`stem.comfy_quant` gives the sizes of groups; where it is missing, ComfyUI's own are taken. Weights with
`stem.weight_correction` are refused: ComfyUI does not read it.

Source: comfy-kitchen, `AsymW4A8Int8Layout`; ComfyUI, `ops._load_quantized_module`.
"""

from __future__ import annotations

from collections.abc import Mapping

from loramerge.checkpoint.comfy import MARK, group_of, settings_of
from loramerge.checkpoint.packing import PackedTensor
from loramerge.checkpoint.relative import Relative, RelativeRows
from loramerge.checkpoint.storage import HeldTensor
from loramerge.errors import FormatError
from loramerge.files.tensors import StoredTensor, Tensor

__all__ = ["STORAGE"]

_RELATIVE, _ROWS = ".weight_s_rel", ".weight_s_channel"
_TABLE, _CORRECTION = ".weight_codebook", ".weight_correction"
_GROUP = 16


class _W4a8:
    name = "w4a8"
    order = -6  # before int8, whose marks it has

    def recognise(self, tensors: Mapping[str, Tensor], name: str) -> HeldTensor | None:
        weight, stem = self.weight(tensors, name), name.removesuffix(".weight")
        if weight is None:
            return None
        relative, rows = tensors[stem + _RELATIVE], tensors.get(stem + _ROWS)
        table = tensors.get(stem + _TABLE)
        bits = tensors[name].shape[1] * 8 // weight.shape[1]
        settings = settings_of(tensors, stem)
        if (
            rows is None
            or rows.size != weight.shape[0]
            or rows.dtype != "F32"
            or relative.dtype not in ("F8_E4M3", "F32")
            or (table is not None and (table.size != 16 or bits != 4))
            or stem + _CORRECTION in tensors
        ):
            raise FormatError(
                "the scales of this W4A8 weight cannot be read",
                module=stem + _RELATIVE,
                expected=f"{_ROWS[1:]} of float32 for each of {weight.shape[0]} rows, and no "
                f"{_CORRECTION[1:]}",
            )
        turn = group_of(settings, weight.shape[1], stem + MARK)
        names = (stem + _RELATIVE, relative), (stem + _ROWS, rows)
        group = weight.shape[1] // relative.shape[1]
        held = RelativeRows(Relative(weight, *names, table, bits, group, turn))
        marks = () if table is None else (stem + _TABLE,)
        size = relative.nbytes + rows.nbytes
        return PackedTensor(held, (stem + _RELATIVE, stem + _ROWS), size, marks)

    def weight(self, tensors: Mapping[str, Tensor], name: str) -> StoredTensor | None:
        """Return the tensor with the type and shape of the weight; None for other weights.

        Raises:
            FormatError: if the sizes of codes and scales do not fit each other.
        """
        tensor, stem = tensors[name], name.removesuffix(".weight")
        relative = tensors.get(stem + _RELATIVE)
        known = tensor.dtype in ("I8", "U8") and len(tensor.shape) == 2 and name != stem
        if relative is None or not known or not isinstance(tensor, StoredTensor):
            return None
        group = settings_of(tensors, stem).get("group_size", _GROUP)
        wide = len(relative.shape) == 2 and type(group) is int and group > 0
        columns = relative.shape[1] * group if wide else 0
        if tensor.shape[1] * 8 not in (4 * columns, 6 * columns) or not columns:
            raise FormatError(
                "the codes and scales of this W4A8 weight do not fit each other",
                module=name,
                found=f"codes {list(tensor.shape)}, scales {list(relative.shape)}, groups of {group}",
            )
        return tensor.seen_as(
            "I4" if tensor.shape[1] * 2 == columns else "I6", (tensor.shape[0], columns)
        )

    def fixes_types(self, tensors: Mapping[str, Tensor]) -> bool:
        return any(name.endswith(_RELATIVE) for name in tensors)

    def partners(self, tensor: Tensor, name: str) -> tuple[str, ...]:
        stem = name.removesuffix(".weight")
        return (stem + _RELATIVE, stem + _ROWS) if tensor.dtype == "I8" else ()


STORAGE = _W4a8()
