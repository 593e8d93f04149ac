"""The element types of safetensors files, as one table.

Only `numpy_dtype` imports numpy (and ml_dtypes for bfloat16 and float8); sizes and names are free.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from loramerge.errors import UsageError
from loramerge.records import NamedTuple

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "DTYPES",
    "FLOATS",
    "PACKED",
    "PLAIN_FLOATS",
    "dtype_name",
    "dtype_of",
    "is_float",
    "is_plain",
    "nbytes",
    "numpy_dtype",
    "scalar",
    "scalar_bytes",
    "type_words",
]


class DType(NamedTuple):
    """Bits per element, numpy (or ml_dtypes) name or None, and the word users type.

    Types that pack several elements together count bits per pack of so many `elements`.
    """

    bits: int
    numpy: str | None
    word: str
    elements: int = 1


DTYPES: dict[str, DType] = {
    "F64": DType(64, "float64", "float64"),
    "F32": DType(32, "float32", "float32"),
    "F16": DType(16, "float16", "float16"),
    "BF16": DType(16, "bfloat16", "bfloat16"),
    "F8_E4M3": DType(8, "float8_e4m3fn", "float8_e4m3"),
    "F8_E5M2": DType(8, "float8_e5m2", "float8_e5m2"),
    "I64": DType(64, "int64", "int64"),
    "I32": DType(32, "int32", "int32"),
    "I16": DType(16, "int16", "int16"),
    "I8": DType(8, "int8", "int8"),
    "U64": DType(64, "uint64", "uint64"),
    "U32": DType(32, "uint32", "uint32"),
    "U16": DType(16, "uint16", "uint16"),
    "U8": DType(8, "uint8", "uint8"),
    "BOOL": DType(8, "bool", "bool"),
    # Copied through, never computed with.
    "C64": DType(64, "complex64", "complex64"),
    "F8_E8M0": DType(8, "float8_e8m0fnu", "float8_e8m0"),
    "F6_E2M3": DType(6, None, "float6_e2m3"),
    "F6_E3M2": DType(6, None, "float6_e3m2"),
    "F4": DType(4, None, "float4"),
}

# Types of GGUF files: elements and bytes of a block. None of them occurs in a safetensors file.
_BLOCKS = {
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34),
    "Q8_1": (32, 40), "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176),
    "Q6_K": (256, 210), "Q8_K": (256, 292), "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74),
    "IQ3_XXS": (256, 98), "IQ1_S": (256, 50), "IQ4_NL": (32, 18), "IQ3_S": (256, 110),
    "IQ2_S": (256, 82), "IQ4_XS": (256, 136), "IQ1_M": (256, 56), "TQ1_0": (256, 54),
    "TQ2_0": (256, 66), "MXFP4": (32, 17), "NVFP4": (64, 36), "Q1_0": (128, 18),
}  # fmt: skip
PACKED: frozenset[str] = frozenset(_BLOCKS)
DTYPES |= {
    name: DType(8 * size, None, name, elements) for name, (elements, size) in _BLOCKS.items()
}
# of weights whose tensors are stored as bytes; no file states them
DTYPES |= {"I4": DType(8, None, "int4", 2), "I6": DType(24, None, "int6", 4)}

PLAIN_FLOATS: tuple[str, ...] = ("F64", "F32", "F16", "BF16")
FLOATS: tuple[str, ...] = (*PLAIN_FLOATS, "F8_E4M3", "F8_E5M2")

_ML_DTYPES = frozenset({"bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"})
_SHORT = {"F8_E4M3": "float8"}  # what most people write
_WORDS = {dtype.word: name for name, dtype in DTYPES.items()} | {
    "fp64": "F64", "fp32": "F32", "fp16": "F16", "bf16": "BF16", "half": "F16", "float": "F32",
    "fp8": "F8_E4M3",
} | {word: name for name, word in _SHORT.items()}  # fmt: skip
_STRUCT = {
    "F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b",
    "U64": "<Q", "U32": "<I", "U16": "<H", "U8": "<B", "BOOL": "<?",
}  # fmt: skip


def nbytes(dtype: str, shape: Iterable[int]) -> int:
    """Return the stored size in bytes of a tensor."""
    found = DTYPES[dtype]
    return math.prod(shape) // found.elements * found.bits // 8


def is_float(dtype: str) -> bool:
    """Return whether tensors of this type can hold weights that loramerge computes with."""
    return dtype in FLOATS


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """Return the numpy dtype of a safetensors dtype name, e.g. `BF16`.

    Raises:
        UsageError: if numpy cannot represent it (sub-byte types).
    """
    import numpy as np

    name = DTYPES[dtype].numpy
    if name is None:
        raise UsageError(f"tensors of type {dtype} can be copied but not computed with")
    if name in _ML_DTYPES:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found
    return np.dtype(name)


@cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the safetensors name of a numpy dtype, the inverse of `numpy_dtype`."""
    for name, entry in DTYPES.items():
        if entry.numpy == dtype.name:
            return name
    raise UsageError(f"arrays of type {dtype.name} cannot be stored in a safetensors file")


def dtype_of(word: str) -> str:
    """Return the safetensors name of a type as users write it: `float16`, `fp16`, `F16`, `bf16`, …"""
    if word.upper() in DTYPES:
        return word.upper()
    try:
        return _WORDS[word.lower()]
    except KeyError:
        raise UsageError(f"unknown dtype {word!r}", expected=type_words(FLOATS)) from None


def type_words(names: Iterable[str]) -> str:
    """Return the words for types, for errors and help: `float16, float8_e4m3 (or float8)`."""
    return ", ".join(
        f"{DTYPES[name].word} (or {_SHORT[name]})" if name in _SHORT else DTYPES[name].word
        for name in names
    )


def is_plain(dtype: str) -> bool:
    """Return whether `scalar` decodes elements of this type without numpy."""
    return dtype in _STRUCT or dtype == "BF16"


def scalar(raw: bytes, dtype: str) -> float:
    """Decode one element without numpy, so that alphas can be read in a header-only inspection."""
    if dtype == "BF16":
        return float(struct.unpack("<f", b"\0\0" + raw)[0])
    code = _STRUCT.get(dtype)
    if code is not None:
        return float(struct.unpack(code, raw)[0])
    import numpy as np

    return float(np.frombuffer(raw, numpy_dtype(dtype))[0])


def scalar_bytes(value: float, dtype: str) -> bytes | None:
    """Return one float encoded, or None if the type cannot hold it exactly."""
    import numpy as np

    with np.errstate(over="ignore", under="ignore"):
        raw = np.array(value).astype(numpy_dtype(dtype)).tobytes()
    return raw if scalar(raw, dtype) == value else None
