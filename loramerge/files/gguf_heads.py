"""Heads of GGUF files: fields, and the list of tensors with their places. Standard library only."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence

from loramerge.errors import NotExpressible
from loramerge.files.dtypes import DTYPES, nbytes
from loramerge.files.forms import GGUF_MAGIC
from loramerge.files.header import TensorInfo

__all__ = [
    "ALIGNMENT", "MOST_DIMENSIONS", "ORIGINAL", "TYPES", "build_gguf", "field_bytes", "head_of",
    "rows_of", "text_bytes",
]  # fmt: skip

ALIGNMENT = 32
MOST_DIMENSIONS = 8  # ggml computes with four, but files hold convolutions over time as they are
ORIGINAL = (
    "comfy.gguf.orig_shape."  # of tensors that were reshaped so that their rows hold whole blocks
)
TYPES = (
    "F32", "F16", "Q4_0", "Q4_1", None, None, "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K",
    "Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S",
    "IQ4_XS", "I8", "I16", "I32", "I64", "F64", "IQ1_M", "BF16", None, None, None, "TQ1_0", "TQ2_0",
    None, None, None, "MXFP4", "NVFP4", "Q1_0",
)  # fmt: skip
_VERSION = 3
_WHOLE, _SIGNED, _REAL, _TEXT, _ARRAY = (
    4,
    5,
    6,
    8,
    9,
)  # types of fields: numbers of 32 bits, text, array
_LONGEST = 127  # characters of the name of a tensor, and bytes
_ROW = 256  # numbers of a row into which tensors are reshaped, one block of the largest types
_SMALLEST = 512  # numbers of a tensor that is worth reshaping

Entry = tuple[str, str, tuple[int, ...]]


def text_bytes(value: str) -> bytes:
    """Return a text with its length before it.

    Raises:
        NotExpressible: if UTF-8 cannot hold it.
    """
    try:
        raw = value.encode("utf-8")
    except UnicodeEncodeError:
        raise NotExpressible(
            "an entry of the metadata has half of a surrogate pair, which no file can hold",
            found=ascii(value)[:80],
        ) from None
    return struct.pack("<Q", len(raw)) + raw


def field_bytes(key: str, value: str | int | float | Sequence[int]) -> bytes:
    """Return a field: a text, a number of 32 bits, or an array of signed ones."""
    head = text_bytes(key)
    if isinstance(value, str):
        return head + struct.pack("<I", _TEXT) + text_bytes(value)
    if isinstance(value, int):
        return head + struct.pack("<II", _WHOLE, value)
    if isinstance(value, float):
        return head + struct.pack("<If", _REAL, value)
    return head + struct.pack(f"<IIQ{len(value)}i", _ARRAY, _SIGNED, len(value), *value)


def head_of(
    version: int,
    fields: Sequence[bytes],
    entries: Iterable[Entry],
    dimensions: Callable[[str, tuple[int, ...]], tuple[int, ...]],
    *,
    alignment: int,
    first: Iterable[str] = (),
) -> tuple[bytes, dict[str, TensorInfo]]:
    """Build the head of a file with these tensors, in the order of their data.

    Args:
        dimensions: gives those of a tensor of a shape, from the fastest to the slowest.
        first: names that are listed before the others.

    Raises:
        NotExpressible: if a tensor cannot be stored.
    """
    offset, offsets = 0, {}
    shapes = {name: (dtype, shape) for name, dtype, shape in entries}
    for name, (dtype, shape) in shapes.items():
        offsets[name] = offset
        offset += nbytes(dtype, shape)
        offset += -offset % alignment
    order = dict.fromkeys((*(name for name in first if name in shapes), *shapes))
    begin = GGUF_MAGIC + struct.pack("<IQQ", version, len(order), len(fields))
    listed = [
        _listed(name, shapes[name][0], dimensions(name, shapes[name][1]), offsets[name])
        for name in order
    ]
    head = b"".join((begin, *fields, *listed))
    head += bytes(-len(head) % alignment)
    infos = {
        name: TensorInfo(
            name, dtype, shape, len(head) + offsets[name],
            len(head) + offsets[name] + nbytes(dtype, shape),
        )
        for name, (dtype, shape) in shapes.items()
    }  # fmt: skip
    return head, infos


def _listed(name: str, dtype: str, dimensions: tuple[int, ...], offset: int) -> bytes:
    if dtype not in TYPES or len(dimensions) > MOST_DIMENSIONS:
        raise NotExpressible(
            "GGUF files cannot hold this tensor",
            module=name,
            found=f"{DTYPES[dtype].word} {list(reversed(dimensions))}",
        )
    layout = f"<I{len(dimensions)}QIQ"
    values = (len(dimensions), *dimensions, TYPES.index(dtype), offset)
    return text_bytes(name) + struct.pack(layout, *values)


def build_gguf(
    entries: Iterable[Entry],
    metadata: Mapping[str, str],
    *,
    fields: Mapping[str, str | int | float],
    reshapes: bool = False,
) -> tuple[bytes, dict[str, TensorInfo]]:
    """Build the head of a new file.

    Args:
        metadata: becomes texts after the fields.
        reshapes: store tensors whose rows hold no whole blocks in rows that do, as convolutions are.

    Raises:
        NotExpressible: if a tensor cannot be stored.
    """
    held = list(entries)
    for name, _, _ in held:
        if len(name.encode()) > _LONGEST:
            raise NotExpressible(
                "the name of this tensor is too long for GGUF files",
                module=name,
                expected=f"at most {_LONGEST} bytes",
            )
    shaped = {name: rows_of(shape) for name, _, shape in held if reshapes}
    raw = [field_bytes(key, value) for key, value in fields.items()]
    raw += [
        field_bytes(ORIGINAL + name, shape)
        for name, _, shape in held
        if shaped.get(name, shape) != shape
    ]
    raw += [field_bytes(key, value) for key, value in metadata.items() if key not in fields]
    return head_of(
        _VERSION,
        raw,
        held,
        lambda name, shape: tuple(reversed(shaped.get(name, shape))) or (1,),
        alignment=ALIGNMENT,
    )


def rows_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape into which a tensor is reshaped, its own if its rows hold whole blocks."""
    size = math.prod(shape)
    if len(shape) < 2 or size < _SMALLEST or size % _ROW or shape[-1] % _ROW == 0:
        return shape
    return size // _ROW, _ROW
