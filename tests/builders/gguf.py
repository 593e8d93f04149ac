"""GGUF files, written and read without loramerge's reader."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.checkpoint.ggml import BLOCK_TYPES
from loramerge.checkpoint.ggml_k import K_TYPES

__all__ = ["KINDS", "Array", "data_of", "field", "quantised", "text", "values_of", "write_gguf"]

Array = np.ndarray[Any, Any]
KINDS = BLOCK_TYPES | K_TYPES
NUMBERS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10,
           "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ4_XS": 23, "BF16": 30}  # fmt: skip
SIZES = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "IQ4_XS": (256, 136)} | {
    name: (kind.elements, kind.size) for name, kind in KINDS.items()
}


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def field(key: str, value: Any) -> bytes:
    """A text, a number of 32 bits, whole or not, or an array of whole ones."""
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", 6, value)
    if isinstance(value, int):
        return text(key) + struct.pack("<II", 4, value)
    if isinstance(value[0], str):
        return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    return text(key) + struct.pack(f"<IIQ{len(value)}I", 9, 4, len(value), *value)


def quantised(array: Array, kind: str) -> bytes:
    """The bytes of an array in a type, flat."""
    if kind not in KINDS:
        return array.astype({"F32": "<f4", "F16": "<f2"}[kind]).tobytes()
    blocks = array.astype("float32").reshape(-1, KINDS[kind].elements)
    return KINDS[kind].fresh(blocks).tobytes()


def write_gguf(
    path: Path,
    tensors: Mapping[str, tuple[Array | bytes, str, tuple[int, ...]]],
    fields: Mapping[str, Any],
    *,
    alignment: int = 32,
    version: int = 3,
) -> Path:
    """Write a file; tensors are (values or bytes, type, dimensions from the slowest to the fastest)."""
    listed, data = b"", b""
    for name, (array, kind, shape) in tensors.items():
        data += bytes(-len(data) % alignment)
        listed += text(name) + struct.pack("<I", len(shape))
        listed += struct.pack(f"<{len(shape)}QIQ", *reversed(shape), NUMBERS[kind], len(data))
        data += array if isinstance(array, bytes) else quantised(array, kind)
    own = {"general.alignment": alignment, **fields} if alignment != 32 else dict(fields)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(own))
    head += b"".join(field(key, value) for key, value in own.items()) + listed
    head += bytes(-len(head) % alignment)
    path.write_bytes(head + data + bytes(-len(data) % alignment))
    return path


def data_of(path: Path, alignment: int = 32) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name → type, dimensions from the slowest, and bytes, of a file that `write_gguf` could write."""
    raw, at = path.read_bytes(), 24

    def take(code: str) -> Any:
        nonlocal at
        found = struct.unpack_from(f"<{code}", raw, at)
        at += struct.calcsize(f"<{code}")
        return found if len(found) > 1 else found[0]

    def words() -> str:
        nonlocal at
        size = take("Q")
        at += size
        return raw[at - size : at].decode()

    _, count, fields = struct.unpack_from("<IQQ", raw, 4)
    for _ in range(fields):
        words()
        kind = take("I")
        if kind == 8:
            words()
        elif kind in (4, 6):
            take("I")
        else:
            inner, size = take("I"), take("Q")
            for _ in range(size):
                words() if inner == 8 else take("I")
    places = []
    for _ in range(count):
        name, axes = words(), take("I")
        shape = tuple(reversed([take("Q") for _ in range(axes)]))
        places.append((name, shape, take("I"), take("Q")))
    at += -at % alignment
    names = {number: name for name, number in NUMBERS.items()}
    found = {}
    for name, shape, number, offset in places:
        elements, size = SIZES[names[number]]
        stop = at + offset + int(np.prod(shape)) // elements * size
        found[name] = names[number], shape, raw[at + offset : stop]
    return found


def values_of(kind: str, raw: bytes) -> Array:
    """The flat float64 values of bytes in a type."""
    if kind not in KINDS:
        return np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[kind]).astype("float64")
    blocks = np.frombuffer(raw, np.uint8).reshape(-1, KINDS[kind].size)
    return KINDS[kind].values(blocks).astype("float64").reshape(-1)
