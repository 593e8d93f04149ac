"""The nf4 and fp4 of bitsandbytes, as transformers and diffusers save them, also with quantised scales.

`NAME.absmax` holds the scales, `NAME.quant_map` the table, and `NAME.quant_state.bitsandbytes__nf4` the
shape and the rest as JSON; quantised scales have `NAME.nested_absmax` and `NAME.nested_quant_map`, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from loramerge.checkpoint.codebook import CodebookRows, Scales
from loramerge.checkpoint.packing import PackedTensor
from loramerge.checkpoint.storage import HeldTensor
from loramerge.errors import FormatError
from loramerge.files.json_values import values_in
from loramerge.files.tensors import StoredTensor, Tensor

__all__ = ["STORAGE"]

_STATE = ".quant_state.bitsandbytes__"
_KINDS = ("nf4", "fp4")
_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")


class _Bitsandbytes4:
    name = "bitsandbytes"
    order = 2

    def recognise(self, tensors: Mapping[str, Tensor], name: str) -> HeldTensor | None:
        weight = self.weight(tensors, name)
        if weight is None:
            return None
        state = _state(tensors, name)
        assert state is not None
        parts = {end: tensors[name + end] for end in _PARTS if name + end in tensors}
        count, block = math.prod(weight.shape), state.get("blocksize")
        if (
            type(block) is not int
            or block < 2
            or block % 2
            or count % block
            or parts.keys() not in ({*_PARTS[:2]}, {*_PARTS})
            or parts[".absmax"].size != count // block
            or parts[".quant_map"].size != 16
            or len(weight.shape) < 2
        ):
            raise FormatError(
                "the scales of this 4-bit weight are not those of its shape",
                module=name,
                found=f"{list(weight.shape)} in blocks of {block}",
            )
        table = parts[".quant_map"].numpy().astype("float32")
        _require_scales(name, parts, state)
        rows = CodebookRows(weight, table, block, partial(_scales, name, parts, state))
        mine = (name + ".absmax",)
        others = (*(name + end for end in parts if end != ".absmax"), _key(tensors, name) or "")
        return PackedTensor(rows, mine, parts[".absmax"].nbytes, others)

    def weight(self, tensors: Mapping[str, Tensor], name: str) -> StoredTensor | None:
        """Return the tensor with the type and shape of the weight; None for other weights."""
        tensor = tensors[name]
        if tensor.dtype != "U8" or not isinstance(tensor, StoredTensor):
            return None
        state = _state(tensors, name)
        if state is None:
            return None
        shape = state.get("shape")
        if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
            shape = []
        if math.prod(shape) != 2 * tensor.size:
            raise FormatError(
                "the shape of this 4-bit weight is not known", module=name, found=shape
            )
        return tensor.seen_as("F4", tuple(shape))

    def fixes_types(self, tensors: Mapping[str, Tensor]) -> bool:
        return any(_STATE in name for name in tensors)

    def partners(self, tensor: Tensor, name: str) -> tuple[str, ...]:
        return tuple(name + end for end in _PARTS) if tensor.dtype == "U8" else ()


def _key(tensors: Mapping[str, Tensor], name: str) -> str | None:
    """Return the name of the tensor that describes a 4-bit weight, None for other weights."""
    return next((name + _STATE + kind for kind in _KINDS if name + _STATE + kind in tensors), None)


def _state(tensors: Mapping[str, Tensor], name: str) -> dict[str, Any] | None:
    """Return what a file says of a 4-bit weight, None for other weights.

    Raises:
        FormatError: if it cannot be read.
    """
    key = _key(tensors, name)
    if key is None:
        return None
    try:
        content = values_in(bytes(tensors[key].raw()).decode("utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise FormatError("the state of a quantised weight cannot be read", module=key)
    return content


def _require_scales(name: str, parts: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Refuse scales that cannot be read.

    Raises:
        FormatError: if quantised scales lack what they need.
    """
    scales, outer = parts[".absmax"], parts.get(".nested_absmax")
    if outer is None:
        if scales.dtype != "F32":
            raise FormatError(
                "the scales of this 4-bit weight are codes without a table", module=name
            )
        return
    block, offset = state.get("nested_blocksize"), state.get("nested_offset")
    right = isinstance(block, int) and block > 0 and isinstance(offset, float)
    right = right and scales.dtype == "U8" and parts[".nested_quant_map"].size == 256
    if not right or outer.size != -(-scales.size // int(block or 1)):
        raise FormatError("the quantised scales of this 4-bit weight cannot be read", module=name)


def _scales(name: str, parts: Mapping[str, Tensor], state: Mapping[str, Any]) -> Scales:
    """Return the scales of a weight."""
    import numpy as np

    stored = np.array(parts[".absmax"].numpy()).reshape(-1)
    if ".nested_absmax" not in parts:
        return Scales(name + ".absmax", stored)
    outer = parts[".nested_absmax"].numpy().astype("float32").reshape(-1)
    table = parts[".nested_quant_map"].numpy().astype("float32").reshape(-1)
    block, offset = int(state["nested_blocksize"]), float(state["nested_offset"])
    return Scales(name + ".absmax", stored, table, outer, block, offset)


STORAGE = _Bitsandbytes4()
