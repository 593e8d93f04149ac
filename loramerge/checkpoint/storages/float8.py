"""Float8 weights with a scale beside them, for a whole tensor, each of its rows or blocks of 128 × 128.

Conventions: `stem.scale_weight` (ComfyUI's scaled float8), `stem.weight_scale` (ComfyUI's later files,
compressed-tensors) and `stem.weight_scale_inv` (DeepSeek, transformers; of blocks, too) hold the
multiplier. `stem.scale_input` and `stem.input_scale` concern activations, `scaled_fp8` and
`stem.comfy_quant` mark files; none of them is touched. Float8 without a scale is `plain`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loramerge.checkpoint.blocks import BLOCK, FloatBlockRows, has_blocks
from loramerge.checkpoint.marked import MarkedEncoding
from loramerge.checkpoint.packing import PackedTensor
from loramerge.checkpoint.scaled import ScaledTensor, is_scale
from loramerge.checkpoint.storage import HeldTensor, Writer
from loramerge.checkpoint.writers import ScaledWriter
from loramerge.errors import FormatError
from loramerge.files.dtypes import is_float
from loramerge.files.tensors import StoredTensor, Tensor

__all__ = ["STORAGE"]

_MULTIPLIERS = (".scale_weight", ".weight_scale", ".weight_scale_inv")
# endings, on the stem or the whole name, of scales that are not understood
_OTHERS = ("_scale_inv", "_scale", ".scale", "_scale_2")
_HINT = "bake into the base it was made from, then quantise that"


def _stem(name: str) -> str:
    return name.removesuffix(".weight")


class _ScaledForm(MarkedEncoding):
    """ComfyUI's scaled float8: e4m3 with one scale for the tensor."""

    def settings(self, shape: tuple[int, ...]) -> Mapping[str, Any]:
        return {"format": "float8_e4m3fn"}

    def stored(
        self, stem: str, name: str, shape: tuple[int, ...]
    ) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        return (name, "F8_E4M3", shape), (stem + _MULTIPLIERS[1], "F32", ())

    def writing(self, stem: str, shape: tuple[int, ...], marks: Mapping[str, bytes]) -> Writer:
        return ScaledWriter(stem + _MULTIPLIERS[1], shape[1], marks)


class _Float8:
    name = "float8"
    order = 0
    encodings = (_ScaledForm("float8-scaled"),)

    def recognise(self, tensors: Mapping[str, Tensor], name: str) -> HeldTensor | None:
        weight, stem = tensors[name], _stem(name)
        if not weight.dtype.startswith("F8"):
            return None
        known = [stem + ending for ending in _MULTIPLIERS if stem + ending in tensors]
        others = [
            key
            for ending in _OTHERS
            for key in (stem + ending, name + ending)
            if key in tensors and key not in known
        ]
        if others or len(known) > 1:
            raise FormatError(
                "the scale of this float8 weight is stored in an unknown way",
                module=(others or known)[0],
                expected="one of " + ", ".join(self.partners(weight, name)),
                hint=_HINT,
            )
        if not known:
            return None
        scale = tensors[known[0]]
        if is_float(scale.dtype) and has_blocks(scale, weight) and not is_scale(scale, weight):
            assert isinstance(weight, StoredTensor)
            rows_of = FloatBlockRows(weight, known[0], scale)
            return PackedTensor(rows_of, (known[0],), scale.nbytes)
        if not is_float(scale.dtype) or not is_scale(scale, weight):
            rows = weight.shape[0] if weight.shape else 1
            raise FormatError(
                "the scale of this float8 weight is neither one number nor one for each row or block",
                module=known[0],
                expected=f"float32 [] or [{rows}], or one number for {BLOCK} × {BLOCK}",
                found=f"{scale.dtype} {list(scale.shape)}",
                hint=_HINT,
            )
        return ScaledTensor(known[0], scale, weight)

    def fixes_types(self, tensors: Mapping[str, Tensor]) -> bool:
        endings = (*_MULTIPLIERS, *_OTHERS)
        return any(
            t.dtype.startswith("F8") and any(_stem(name) + e in tensors for e in endings)
            for name, t in tensors.items()
        )

    def partners(self, tensor: Tensor, name: str) -> tuple[str, ...]:
        if not tensor.dtype.startswith("F8"):
            return ()
        return tuple(_stem(name) + ending for ending in _MULTIPLIERS)


STORAGE = _Float8()
