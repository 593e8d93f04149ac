"""The mark that ComfyUI puts beside a quantised weight: `stem.comfy_quant`, JSON in bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loramerge.errors import FormatError
from loramerge.files.json_values import values_in
from loramerge.files.tensors import StoredTensor, Tensor

__all__ = ["MARK", "four_bits", "group_of", "settings_of"]

MARK = ".comfy_quant"


def settings_of(tensors: Mapping[str, Tensor], stem: str) -> Mapping[str, Any]:
    """Return what a mark says of a weight, with the parameters that it nests; empty without a mark.

    Raises:
        FormatError: if it cannot be read.
    """
    mark = tensors.get(stem + MARK)
    if mark is None:
        return {}
    try:
        content = values_in(bytes(mark.raw()).decode("utf-8"))
        found, inner = {"format": content["format"]}, content.get("params", {})
        return {**(inner if isinstance(inner, dict) else {}), **content, **found}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FormatError(
            "the mark of a quantised weight cannot be read", module=stem + MARK
        ) from None


def four_bits(tensors: Mapping[str, Tensor], name: str, form: str) -> StoredTensor | None:
    """Return a weight of two numbers in a byte with its type and shape; None if it is of another form.

    Args:
        form: the one that its mark must name.
    """
    tensor, stem = tensors[name], name.removesuffix(".weight")
    known = tensor.dtype in ("I8", "U8") and len(tensor.shape) == 2 and stem + MARK in tensors
    if not known or not isinstance(tensor, StoredTensor):
        return None
    if settings_of(tensors, stem)["format"] != form:
        return None
    return tensor.seen_as("I4", (tensor.shape[0], tensor.shape[1] * 2))


def group_of(settings: Mapping[str, Any], columns: int, name: str) -> int:
    """Return the number of columns that are rotated together.

    Raises:
        FormatError: if no rotation has such a size, or it does not fit the weight.
    """
    group = settings.get("convrot_groupsize", 256)
    power = type(group) is int and group > 1 and bin(group).count("1") == 1
    if not power or group.bit_length() % 2 == 0 or columns % group:
        raise FormatError(
            "the rotation of this weight cannot be undone",
            module=name,
            expected="groups of 4, 16, 64, 256 or 1024 columns",
            found=f"groups of {group} for {columns} columns",
        )
    return int(group)
