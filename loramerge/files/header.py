"""The safetensors header: parse, validate, build. Standard library only.

A file is `length (8 bytes, little endian) · header (JSON, `length` bytes) · data`. The header maps
tensor names to dtype, shape and data offsets, and `__metadata__` to a map of strings. Everything the
format promises is checked before any tensor is touched.

Source: the format section of the safetensors README.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from operator import itemgetter
from os import PathLike
from typing import Any

from loramerge.errors import CorruptFile, LoramergeError, NotExpressible, Setting
from loramerge.files.dtypes import DTYPES, PACKED, nbytes
from loramerge.files.json_values import in_words
from loramerge.files.signatures import HEAD, foreign
from loramerge.records import NamedTuple, row_maker

__all__ = ["MAX_HEADER_BYTES", "Header", "TensorInfo", "build_header", "nbytes", "parse_header"]

MAX_HEADER_BYTES = 100_000_000
_LIMIT = 1 << 62  # of dimensions and offsets; what comes of a few of them can still be printed
_MOST_DIMENSIONS = 64  # of a NumPy array


class TensorInfo(NamedTuple):
    """The place of one tensor: `start` and `stop` are byte offsets from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Header(NamedTuple):
    """A validated header: tensors in the order of their data, metadata, and the start of the data."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = tuple(pairs)
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the name {twice!r} occurs twice")
    return found


def _encodable(words: Iterable[Any]) -> None:
    """Refuse lone surrogates, which are not valid Unicode and could not be written again."""
    for word in words:
        if isinstance(word, str):
            word.encode()


def _content(text: str) -> tuple[dict[str, Any], Any]:
    """Return the entries of a header, each a tuple of pairs, and its metadata, None if it has none.

    Objects are read as tuples of their pairs, so that names that occur twice can be seen; a hook in
    Python for each of thousands of objects would take longer than all the rest.

    Raises:
        ValueError: if it is not JSON, or a name occurs twice.
    """
    content = _unique(json.loads(text, object_pairs_hook=tuple))
    metadata = content.pop("__metadata__", None)
    if isinstance(metadata, tuple):
        metadata = _unique(metadata)
        if "\\u" in text:
            _encodable(metadata)
            _encodable(metadata.values())
    if "\\u" in text:  # no other spelling of JSON in UTF-8 gives surrogates
        _encodable(content)
    return content, metadata


def parse_header(
    length_field: bytes, read: Callable[[int], bytes], file_size: int, path: str | PathLike[str]
) -> Header:
    """Parse and validate a header.

    Args:
        length_field: the first 8 bytes of the file.
        read: function of a byte count that returns that many bytes after the length field.
        file_size: size of the whole file in bytes.
        path: named in errors.

    Raises:
        ForeignFile: if this is a file of another format.
        CorruptFile: if any promise of the format is broken.
    """

    def corrupt(problem: str, **details: Any) -> CorruptFile:
        details.setdefault("hint", "download or export the file again")
        return CorruptFile(f"not a valid safetensors file: {problem}", file=path, **details)

    def no_header(problem: str, **details: Any) -> LoramergeError:
        head = length_field + read(max(0, min(HEAD, file_size) - len(length_field)))
        return foreign(head, path, "a safetensors file") or corrupt(problem, **details)

    if len(length_field) < 8:
        raise no_header("it is shorter than the 8 bytes of the header length",
                        found=f"{file_size} bytes")  # fmt: skip
    (length,) = struct.unpack("<Q", length_field)
    if length == 0:
        raise corrupt("it begins with zeros, as after an unfinished download")
    if length > MAX_HEADER_BYTES:
        raise no_header("it does not start with the length of a header")
    if 8 + length > file_size:
        raise no_header("the file ends before its header does",
                        expected=f"at least {8 + length} bytes", found=f"{file_size} bytes")  # fmt: skip
    raw = read(length)
    if raw[:1] != b"{":
        raise no_header("the header does not start with '{'", found=raw[:1])
    try:
        content, metadata = _content(raw.decode("utf-8"))
    except RecursionError:
        raise corrupt("the header is nested too deeply") from None
    except ValueError as error:  # bad UTF-8, bad JSON, a name twice
        raise corrupt(f"the header cannot be read ({in_words(error)})") from None

    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise corrupt("__metadata__ must map strings to strings")
    data_start = 8 + length
    infos = _plain_infos(content, data_start) or [
        _strict_info(name, pairs, data_start, corrupt) for name, pairs in content.items()
    ]
    infos.sort(key=_BY_PLACE)
    position = data_start
    for name, _, _, start, stop in infos:
        if start != position:
            what = "overlaps the one before it" if start < position else "leaves a gap"
            raise corrupt(f"a tensor {what}", module=name, expected=position, found=start)
        position = stop
    if position != file_size:
        raise corrupt(
            "the data does not end with the file", expected=f"{position} bytes", found=file_size
        )
    return Header({info.name: info for info in infos}, metadata, data_start)


_BY_PLACE = itemgetter(3, 4)
_USUAL_ORDER = ("dtype", "shape", "data_offsets")
_BITS = {name: dtype.bits for name, dtype in DTYPES.items() if name not in PACKED}


def _plain_infos(content: Mapping[str, Any], data_start: int) -> list[TensorInfo] | None:
    """Return all entries of a header, None where not every one is certainly right.

    There are thousands, of few types and shapes. What a type and a shape take is computed once for
    each, and whether all numbers are whole is asked once for all, as `True` and `1.0` equal 1.
    """
    sizes: dict[tuple[str, tuple[int, ...]], int] = {}
    shapes, starts, stops = [], [], []
    infos: list[TensorInfo] = []
    try:
        for name, pairs in content.items():
            (first, dtype), (second, shape), (third, (start, stop)) = pairs
            dimensions = tuple(shape)
            size = sizes.get((dtype, dimensions))
            if size is None:
                size = sizes[dtype, dimensions] = _size_of(dtype, dimensions)
            if (first, second, third) != _USUAL_ORDER or stop - start != size:
                return None
            shapes.append(shape)
            starts.append(start)
            stops.append(stop)
            place = data_start + start, data_start + stop
            infos.append(_info_of((name, dtype, dimensions, *place)))
        if not infos or min(starts) < 0 or max(stops) >= _LIMIT:
            return None
    except (KeyError, TypeError, ValueError):
        return None
    if {*map(type, content.values())} != {tuple} or {*map(type, shapes)} != {list}:
        return None  # an array of pairs is not an object, and an empty object not a shape
    whole = {*map(type, chain(starts, stops, *shapes))} == {int}
    return infos if whole else None


def _size_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor.

    Raises:
        KeyError, TypeError, ValueError: if there is no such type or shape.
    """
    if len(shape) > _MOST_DIMENSIONS:  # before the product, which grows with each
        raise ValueError("too many dimensions")
    size, rest = divmod(math.prod(shape) * _BITS[dtype], 8)
    if rest or (shape and not (min(shape) >= 0 and max(shape) < _LIMIT)):
        raise ValueError("no such tensor")
    return size


_info_of = row_maker(TensorInfo)


def _strict_info(
    name: str, pairs: Any, data_start: int, corrupt: Callable[..., CorruptFile]
) -> TensorInfo:
    """Check an entry part by part, and raise the first problem.

    Raises:
        CorruptFile: naming the tensor.
    """
    try:
        entry = _unique(pairs) if isinstance(pairs, tuple) else pairs
    except ValueError as error:
        raise corrupt(f"the header cannot be read ({error})", module=name) from None
    if problem := _entry_problem(entry):
        raise corrupt(problem, module=name)
    start, stop = entry["data_offsets"]
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    if math.prod(shape) * _BITS[dtype] != (stop - start) * 8:
        raise corrupt(
            "dtype × shape is not the number of bytes",
            module=name,
            expected=f"{nbytes(dtype, shape)} bytes for {dtype} {list(shape)}",
            found=stop - start,
        )
    return TensorInfo(name, dtype, shape, data_start + start, data_start + stop)


def _entry_problem(entry: Any) -> str | None:
    """Return the problem of a tensor's entry, or None."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        return "an entry lacks dtype, shape or data_offsets"
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in _BITS:
        return f"unknown dtype {_short(entry['dtype'])}"
    shape, offsets = entry["shape"], entry["data_offsets"]
    if isinstance(shape, list) and len(shape) > _MOST_DIMENSIONS:
        return f"{len(shape)} dimensions are more than {_MOST_DIMENSIONS}"
    if not isinstance(shape, list) or any(type(n) is not int or not 0 <= n < _LIMIT for n in shape):
        return f"impossible shape {_short(shape)}"
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or any(type(n) is not int for n in offsets)
        or not 0 <= offsets[0] <= offsets[1] < _LIMIT
    ):
        return f"impossible data_offsets {_short(offsets)}"
    return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def build_header(
    entries: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, TensorInfo]]:
    """Build the bytes before the data (length field included) for tensors laid out in order.

    The result is a pure function of its arguments: metadata is sorted, separators are fixed, and the
    header is padded with spaces to a multiple of 8 bytes.

    Raises:
        NotExpressible: if it would be longer than any reader takes, or a name or an entry is not valid
            Unicode.
    """
    content: dict[str, Any] = {}
    if metadata:
        content["__metadata__"] = dict(sorted(metadata.items()))
    position, places = 0, []
    for name, dtype, shape in entries:
        stop = position + nbytes(dtype, shape)
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, stop]}
        places.append((name, dtype, shape, position, stop))
        position = stop
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.end + 20]
        raise NotExpressible(
            "a name or an entry of the metadata has half of a surrogate pair, which no file can hold",
            found=ascii(around),
        ) from None
    raw += b" " * (-len(raw) % 8)
    if len(raw) > MAX_HEADER_BYTES:
        longest = max(metadata, key=lambda key: len(metadata[key]), default=None)
        raise NotExpressible(
            "the header of the result would be longer than the format allows",
            expected=f"at most {MAX_HEADER_BYTES:,} bytes",
            found=f"{len(raw):,} bytes for {len(places)} tensors and {len(metadata)} entries"
            + (f", the longest {longest[:80]!r}" if longest else ""),
            hint=("remove entries with loramerge meta, or give ", Setting("strip")),
        )
    data_start = 8 + len(raw)
    infos = {
        name: TensorInfo(name, dtype, tuple(shape), data_start + start, data_start + stop)
        for name, dtype, shape, start, stop in places
    }
    return struct.pack("<Q", len(raw)) + raw, infos
