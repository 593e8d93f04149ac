"""Safetensors files, written and read without loramerge."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

__all__ = [
    "STORAGE", "data_section", "read_safetensors", "safetensors_bytes", "sparse_safetensors",
    "write_safetensors",
]  # fmt: skip

Array = np.ndarray[Any, Any]

STORAGE = {
    "F64": np.dtype("float64"), "F32": np.dtype("float32"), "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16), "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2), "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype("int64"), "I32": np.dtype("int32"), "I16": np.dtype("int16"),
    "I8": np.dtype("int8"), "U64": np.dtype("uint64"), "U32": np.dtype("uint32"),
    "U16": np.dtype("uint16"), "U8": np.dtype("uint8"), "BOOL": np.dtype("bool"),
    "C64": np.dtype("complex64"),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in STORAGE.items()}


def safetensors_bytes(tensors: Mapping[str, Array], metadata: Mapping[str, str] = {}) -> bytes:
    """The bytes of a safetensors file, tensors in the order given."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    chunks, position = [], 0
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [position, position + len(raw)],
        }
        chunks.append(raw)
        position += len(raw)
    head = json.dumps(header).encode()
    return b"".join((struct.pack("<Q", len(head)), head, *chunks))


def write_safetensors(
    path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file in the order given, and the folders it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(safetensors_bytes(tensors, metadata or {}))


def sparse_safetensors(path: Path, shapes: Mapping[str, Sequence[int]]) -> Path:
    """Write a file of these shapes that takes no room: all values are zeros."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return path


def read_safetensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Read tensors in the order of their data, and the metadata."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = (8 + length + n for n in entry["data_offsets"])
        values = np.frombuffer(raw[start:stop], STORAGE[entry["dtype"]])
        arrays[name] = values.reshape(entry["shape"])
    return arrays, metadata


def data_section(path: Path) -> bytes:
    """Everything after the header of a safetensors file."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return raw[8 + length :]
