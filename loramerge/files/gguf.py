"""GGUF files: the header parsed, validated and built again around other tensors. Standard library only.

A file is `GGUF · version · number of tensors and fields · fields · tensors · padding · data`. A field is
a key and a typed value; a tensor has a name, its dimensions from the fastest to the slowest, a type and
an offset into the data, where each tensor begins at a multiple of `general.alignment`.

Source: docs/gguf.md of ggml.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from loramerge.errors import CorruptFile, FormatError
from loramerge.files.dtypes import DTYPES, nbytes
from loramerge.files.forms import GGUF_MAGIC
from loramerge.files.gguf_heads import (
    ALIGNMENT,
    MOST_DIMENSIONS,
    ORIGINAL,
    TYPES,
    field_bytes,
    head_of,
)
from loramerge.files.header import Header, TensorInfo
from loramerge.files.positioned import PositionedFile
from loramerge.files.reader import TensorFile

__all__ = ["GgufFile"]

_VERSIONS = (2, 3)
_MOST_BYTES = 1 << 28  # of a header; vocabularies take a few million
_MOST_VALUES = 64  # of an array that is kept; longer ones are vocabularies
_VALUES = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_TEXT, _ARRAY = 8, 9


class _Field(NamedTuple):
    """A field: its bytes, key included, and its value, None for a long or nested array."""

    raw: bytes
    value: Any


class _Entry(NamedTuple):
    """A tensor as the header has it, with its dimensions in the order of the file."""

    dimensions: tuple[int, ...]
    dtype: str


class GgufFile(TensorFile):
    """A GGUF file: `tensors` in the order of their data, text and numbers of its fields as metadata.

    Shapes are those of the model: slowest dimension first, and the one from before a tensor was
    reshaped for its blocks, where the file tells it.

    Raises:
        CorruptFile, MissingFile: if the file is not a valid GGUF file.
    """

    fields: Mapping[str, Any]
    alignment: int

    def _parse(self, handle: PositionedFile) -> Header:
        cursor = _Cursor(handle)
        magic, version = cursor.take(4), cursor.number("I")
        if magic != GGUF_MAGIC:
            raise cursor.corrupt("it does not begin with 'GGUF'")
        if version not in _VERSIONS:
            raise FormatError(
                "this version of GGUF cannot be read",
                file=handle.path,
                expected=" or ".join(map(str, _VERSIONS)),
                found=version if version < 1 << 16 else "a file of another byte order",
            )
        self._version = version
        count, fields = cursor.number("Q"), cursor.number("Q")
        self._fields = _fields(cursor, fields)
        self.fields = {key: field.value for key, field in self._fields.items()}
        self.alignment = self.fields.get("general.alignment", ALIGNMENT)
        if type(self.alignment) is not int or not 0 < self.alignment < 1 << 24:
            raise cursor.corrupt("impossible alignment", found=self.alignment)
        entries = [_entry(cursor) for _ in range(count)]
        start = cursor.position + -cursor.position % self.alignment
        infos = sorted(
            (_placed(cursor, self.fields, start, *one) for one in entries),
            key=lambda info: (info.start, info.stop),
        )
        self._entries = {name: entry for name, entry, _ in entries}
        _require_apart(cursor, infos, self.alignment)
        if len(self._entries) != len(infos):
            raise cursor.corrupt("the name of a tensor occurs twice")
        metadata = {
            key: value if isinstance(value, str) else str(value)
            for key, value in self.fields.items()
            if isinstance(value, str | int | float)
        }
        return Header({info.name: info for info in infos}, metadata, start)

    def rebuilt(
        self, entries: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
    ) -> tuple[bytes, dict[str, TensorInfo]]:
        """Build the head of a file with these tensors, in the order of their data.

        Fields keep their bytes, except for texts that `metadata` changes or leaves out; its new entries
        follow as texts. The list of tensors keeps its order.

        Raises:
            NotExpressible: if an entry of the metadata or a tensor cannot be stored.
        """
        before = self.header.metadata
        kept = [
            field.raw
            for key, field in self._fields.items()
            if key not in before or metadata.get(key) == before[key]
        ]
        added = [(k, v) for k, v in metadata.items() if before.get(k) != v]
        kept += [field_bytes(key, self._as_before(key, value)) for key, value in added]
        return head_of(
            self._version,
            kept,
            entries,
            self._dimensions,
            alignment=self.alignment,
            first=self._entries,
        )

    def _as_before(self, key: str, value: str) -> str | int:
        """Return a new value of a field as a whole number, if it was one."""
        whole = type(self.fields.get(key)) is int and value.isdecimal()
        return int(value) if whole else value

    def _dimensions(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the dimensions of a tensor, as before where its shape is."""
        entry = self._entries.get(name)
        same = entry is not None and self.header.tensors[name].shape == shape
        return entry.dimensions if entry is not None and same else tuple(reversed(shape))


class _Cursor:
    """Reads a header of unknown length piece by piece."""

    _STEP = 1 << 20

    def __init__(self, handle: PositionedFile) -> None:
        self._handle, self._size = handle, handle.size()
        self._held, self._start = b"", 0
        self.position = 0

    def corrupt(self, problem: str, **details: Any) -> CorruptFile:
        """Return the error for a header that breaks a promise of the format."""
        details.setdefault("hint", "download or convert the file again")
        return CorruptFile(f"not a valid GGUF file: {problem}", file=self._handle.path, **details)

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        stop = self.position + count
        if stop > min(self._size, _MOST_BYTES):
            raise self.corrupt("the file ends before its header does")
        if stop > self._start + len(self._held):
            step = max(count, self._STEP)
            self._start = self.position
            self._held = self._handle.read(self._start, min(step, self._size - self._start))
        first = self.position - self._start
        self.position = stop
        return self._held[first : first + count]

    def number(self, code: str) -> Any:
        """Return the next number, of a type of `struct`."""
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return value

    def text(self) -> str:
        """Return the next text."""
        raw = self.take(self.number("Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.corrupt("a name is not valid UTF-8", found=raw[:80]) from None

    def value(self, kind: int, depth: int = 0) -> Any:
        """Return the next value of a type; None for an array that is long or holds arrays."""
        if kind == _TEXT:
            return self.take(self.number("Q")).decode("utf-8", "replace")
        if kind in _VALUES:
            return self.number(_VALUES[kind])
        if kind != _ARRAY or depth > 1:
            raise self.corrupt("a field has an unknown type", found=kind)
        inner, count = self.number("I"), self.number("Q")
        if inner in _VALUES:
            size = struct.calcsize(f"<{_VALUES[inner]}")
            raw = self.take(count * size)
            few = count <= _MOST_VALUES
            return struct.unpack(f"<{count}{_VALUES[inner]}", raw) if few else None
        values = [self._skipped(inner, depth, keep=count <= _MOST_VALUES) for _ in range(count)]
        return tuple(values) if count <= _MOST_VALUES and inner == _TEXT else None

    def _skipped(self, kind: int, depth: int, *, keep: bool) -> Any:
        if kind == _TEXT and not keep:
            self.take(self.number("Q"))
            return None
        return self.value(kind, depth + 1)

    def between(self, start: int) -> bytes:
        """Return the bytes from a position to the current one."""
        return self._handle.read(start, self.position - start)


def _fields(cursor: _Cursor, count: int) -> dict[str, _Field]:
    """Read the fields of a header.

    Raises:
        CorruptFile: if one occurs twice or cannot be read.
    """
    found: dict[str, _Field] = {}
    for _ in range(count):
        start, key = cursor.position, cursor.text()
        value = cursor.value(cursor.number("I"))
        if key in found:
            raise cursor.corrupt("a field occurs twice", found=key[:80])
        found[key] = _Field(cursor.between(start), value)
    return found


def _entry(cursor: _Cursor) -> tuple[str, _Entry, int]:
    """Read a tensor of the list; return its name, the tensor, and its offset into the data."""
    name, axes = cursor.text(), cursor.number("I")
    if not 0 < axes <= MOST_DIMENSIONS:
        raise cursor.corrupt("impossible number of dimensions", module=name, found=axes)
    dimensions = tuple(cursor.number("Q") for _ in range(axes))
    kind, offset = cursor.number("I"), cursor.number("Q")
    dtype = TYPES[kind] if kind < len(TYPES) else None
    if dtype is None:
        raise FormatError(
            "the type of this tensor is not known",
            file=cursor._handle.path,
            module=name,
            found=kind,
        )
    if dimensions[0] % DTYPES[dtype].elements:
        raise cursor.corrupt(
            "a row does not hold whole blocks",
            module=name,
            expected=f"a multiple of {DTYPES[dtype].elements}",
            found=dimensions[0],
        )
    return name, _Entry(dimensions, dtype), offset


def _placed(
    cursor: _Cursor, fields: Mapping[str, Any], start: int, name: str, entry: _Entry, offset: int
) -> TensorInfo:
    """Return a tensor with the shape of the model and its place in the file."""
    shape = tuple(reversed(entry.dimensions))
    size = nbytes(entry.dtype, shape)
    original = fields.get(ORIGINAL + name)
    if original is not None:
        if not isinstance(original, tuple) or math.prod(original) != math.prod(shape):
            raise cursor.corrupt("the original shape does not fit", module=name, found=original)
        shape = original
    return TensorInfo(name, entry.dtype, shape, start + offset, start + offset + size)


def _require_apart(cursor: _Cursor, infos: Iterable[TensorInfo], alignment: int) -> None:
    """Refuse tensors that overlap, lie outside the file, or begin elsewhere than they may."""
    stop = 0
    for info in infos:
        if info.start < stop:
            raise cursor.corrupt("a tensor overlaps the one before it", module=info.name)
        if info.stop > cursor._size:
            raise cursor.corrupt(
                "the file ends before its data does",
                module=info.name,
                expected=f"at least {info.stop} bytes",
                found=f"{cursor._size} bytes",
            )
        if info.start % alignment:
            raise cursor.corrupt("a tensor is not aligned", module=info.name, found=info.start)
        stop = info.stop
