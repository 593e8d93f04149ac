"""A header that breaks a promise of the format is refused, by name."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from loramerge.errors import CorruptFile, FileError, MissingFile
from loramerge.files.header import MAX_HEADER_BYTES, _unique, build_header
from loramerge.files.positioned import PositionedFile
from loramerge.files.reader import TensorFile

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw_file(header: Any, data: bytes = bytes(8), length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def two(first: list[int], second: list[int]) -> dict[str, Any]:
    return {
        "a": {"dtype": "U8", "shape": [first[1] - first[0]], "data_offsets": first},
        "b": {"dtype": "U8", "shape": [second[1] - second[0]], "data_offsets": second},
    }


HALF = {"dtype": "U8", "shape": [1, 4], "data_offsets": [0, 4]}  # of the data

# what is wrong → (bytes, tensor that must be named, words of the message)
ATTACKS: dict[str, tuple[bytes, str | None, str]] = {
    "empty file": (b"", None, "shorter than the 8 bytes"),
    "seven bytes": (bytes(7), None, "shorter than the 8 bytes"),
    "length beyond the file": (raw_file({"a": ONE}, length=4096), None, "ends before its header"),
    "length over the limit": (raw_file({}, length=MAX_HEADER_BYTES + 1), None, "not start with"),
    "length of all ones": (b"\xff" * 16, None, "not start with the length"),
    "header of no bytes": (bytes(8), None, "an unfinished download"),
    "not JSON": (raw_file(b"{nonsense"), None, "cannot be read"),
    "not an object": (raw_file([]), None, "does not start with '{'"),
    "leading space": (raw_file(b" {}"), None, "does not start with '{'"),
    "not UTF-8": (raw_file(b'{"\xff": 1}'), None, "not UTF-8"),
    "half a character": (raw_file(b'{"\\ud800": {}}'), None, "half of a surrogate pair"),
    "a number of 5,000 digits": (raw_file(b'{"a": ' + b"9" * 5000 + b"}"), None, "thousands of digits"),
    "nested too deeply": (raw_file(b'{"a":' + b"[" * 200_000), None, "nested too deeply"),
    "a name twice": (raw_file(b'{"a": 1, "a": 1}'), None, "'a' occurs twice"),
    "an entry's key twice": (raw_file(b'{"a": {"dtype": 1, "dtype": 1}}'), "a", "occurs twice"),
    "entry without offsets": (raw_file({"a": {"dtype": "F32", "shape": [2]}}), "a", "lacks"),
    "entry that is a list": (raw_file({"a": [1]}), "a", "lacks"),
    "entry that is a list of pairs": (raw_file({"a": [list(p) for p in ONE.items()]}), "a", "lacks"),
    "metadata key twice": (raw_file(b'{"__metadata__": {"a": "1", "a": "2"}}'), None, "occurs twice"),
    "half a character in metadata": (
        raw_file(b'{"__metadata__": {"a": "\\ud800"}}'), None, "cannot be read",
    ),
    "unknown dtype": (raw_file({"a": ONE | {"dtype": "F33"}}), "a", "unknown dtype 'F33'"),
    "dtype that is a list": (raw_file({"a": ONE | {"dtype": ["F32"]}}), "a", "unknown dtype"),
    "negative offset": (raw_file({"a": ONE | {"data_offsets": [-8, 0]}}), "a", "data_offsets"),
    "offsets backwards": (raw_file({"a": ONE | {"data_offsets": [8, 0]}}), "a", "data_offsets"),
    "three offsets": (raw_file({"a": ONE | {"data_offsets": [0, 4, 8]}}), "a", "data_offsets"),
    "offset as text": (raw_file({"a": ONE | {"data_offsets": ["0", 8]}}), "a", "data_offsets"),
    "offset true": (raw_file({"a": ONE | {"data_offsets": [False, 8]}}), "a", "data_offsets"),
    "negative dimension": (raw_file({"a": ONE | {"shape": [-2]}}), "a", "impossible shape"),
    "text for a shape": (raw_file({"a": {"dtype": "U8", "shape": "", "data_offsets": [0, 1]}}), "a",
                         "impossible shape"),
    "object for a shape": (raw_file({"a": {"dtype": "U8", "shape": {}, "data_offsets": [0, 1]}}), "a",
                           "impossible shape"),
    "true for 1, as in the tensor before": (
        raw_file({"a": HALF, "b": HALF | {"shape": [True, 4], "data_offsets": [4, 8]}}),
        "b", "impossible shape",
    ),
    "1.0 for 1, as in the tensor before": (
        raw_file({"a": HALF, "b": HALF | {"shape": [1.0, 4], "data_offsets": [4, 8]}}),
        "b", "impossible shape",
    ),
    "another name for the dtype": (
        raw_file({"a": {"type": "F32", "shape": [2], "data_offsets": [0, 8]}}), "a", "lacks",
    ),
    "fractional dimension": (raw_file({"a": ONE | {"shape": [2.0]}}), "a", "impossible shape"),
    "NaN dimension": (raw_file(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}'),
                      "a", "impossible shape"),
    "shape that overflows": (raw_file({"a": ONE | {"shape": [1 << 40, 1 << 40]}}), "a", "bytes"),
    "65 dimensions": (raw_file({"a": ONE | {"shape": [2] + [1] * 64}}), "a", "65 dimensions are more"),
    "a million dimensions": (
        raw_file({"a": ONE | {"shape": [9] * 1_000_000}}), "a", "1000000 dimensions are more",
    ),
    "offsets of 4000 digits": (
        raw_file({"a": ONE | {"data_offsets": [10**4000, 10**4000 + 8]}}), "a", "data_offsets",
    ),
    "offset of the most digits that Python prints": (
        raw_file({"a": ONE | {"shape": [0], "data_offsets": [10**4300 - 1] * 2}}), "a", "data_offsets",
    ),
    "a number of 100,000 digits": (
        raw_file(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 100_000 + b'], "data_offsets": [0, 8]}}'),
        None, "cannot be read",
    ),
    "dimension of 4000 digits": (raw_file({"a": ONE | {"shape": [10**4000]}}), "a", "impossible shape"),
    "wrong byte count": (raw_file({"a": ONE | {"shape": [3]}}), "a", "12 bytes for F32 [3]"),
    "overlap": (raw_file(two([0, 5], [4, 8])), "b", "overlaps"),
    "the same place twice": (raw_file(two([0, 8], [0, 8])), "b", "overlaps"),
    "gap": (raw_file(two([0, 3], [4, 8])), "b", "gap"),
    "gap at the start": (raw_file(two([1, 4], [4, 8])), "a", "gap"),
    "trailing bytes": (raw_file({"a": ONE}, bytes(9)), None, "does not end with the file"),
    "data cut off": (raw_file({"a": ONE}, bytes(7)), None, "does not end with the file"),
    "metadata of numbers": (raw_file({"__metadata__": {"n": 1}, "a": ONE}), None, "__metadata__"),
    "metadata that is a list": (raw_file({"__metadata__": [], "a": ONE}), None, "__metadata__"),
    "metadata that is text": (raw_file({"__metadata__": "x", "a": ONE}), None, "__metadata__"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_broken_header_is_refused(attack: str, tmp_path: Path) -> None:
    raw, module, words = ATTACKS[attack]
    path = tmp_path / "broken.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CorruptFile) as caught:
        TensorFile(path)
    assert caught.value.exit_code == 3
    assert caught.value.file == str(path)
    assert caught.value.module == module
    assert words in str(caught.value)
    assert caught.value.hint


def test_a_whole_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "whole.safetensors"
    path.write_bytes(raw_file({"__metadata__": {"k": "v"}, "a": ONE}))
    file = TensorFile(path)
    assert file.metadata == {"k": "v"}
    assert file.tensors["a"].shape == (2,)


def test_metadata_may_be_null_and_the_header_padded(tmp_path: Path) -> None:
    path = tmp_path / "padded.safetensors"
    raw = json.dumps({"__metadata__": None, "a": ONE}).encode() + b"   "
    path.write_bytes(raw_file(raw))
    assert TensorFile(path).metadata == {}


def test_tensors_come_in_the_order_of_their_data(tmp_path: Path) -> None:
    path = tmp_path / "order.safetensors"
    path.write_bytes(raw_file(two([4, 8], [0, 4])))
    assert list(TensorFile(path).tensors) == ["b", "a"]


def test_a_missing_file_and_a_folder_say_so(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="no such file"):
        TensorFile(tmp_path / "none.safetensors")
    with pytest.raises(FileError, match="found a folder"):
        TensorFile(tmp_path)


def test_a_file_replaced_after_opening_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw_file({"a": ONE}))
    file = TensorFile(path)
    file.close()
    path.write_bytes(raw_file({"a": ONE}) + b"")
    os.utime(path, ns=(1, 1))
    with pytest.raises(FileError, match="changed after its header was read"):
        file.tensors["a"].numpy()


@pytest.mark.parametrize("way", ["raw", "numpy", "copy"])
def test_a_file_edited_while_it_is_open_is_refused(tmp_path: Path, way: str) -> None:
    """Its size is the same: half of what is read might be old, and half new."""
    path = tmp_path / "a.safetensors"
    raw = raw_file({"a": ONE})
    path.write_bytes(raw)
    tensor = TensorFile(path).tensors["a"]
    with path.open("r+b") as file:
        file.seek(len(raw) - 1)
        file.write(b"x")
    os.utime(path, ns=(1, 1))
    with pytest.raises(FileError, match="changed while it was read"):
        if way == "copy":
            with PositionedFile(tmp_path / "copy", "x") as copy:
                copy.copy_from(tensor.source, tensor.info.start, 0, tensor.nbytes)
        else:
            getattr(tensor, way)()


class _Counted(str):
    """A name that counts how often it is compared or looked up."""

    looks = 0

    def __eq__(self, other: object) -> bool:
        _Counted.looks += 1
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        _Counted.looks += 1
        return str.__hash__(self)


def test_a_name_that_occurs_twice_is_found_in_linear_work() -> None:
    found = []
    for count in (500, 1000, 2000):
        _Counted.looks = 0
        names = [_Counted(i) for i in range(count)] + [_Counted(count - 1)]
        with pytest.raises(ValueError, match=f"'{count - 1}' occurs twice"):
            _unique((name, None) for name in names)
        found.append(_Counted.looks)
    assert found[2] - found[1] < 2.5 * (found[1] - found[0])  # doubled, not times four


def test_a_header_longer_than_readers_take_is_refused_before_it_is_written() -> None:
    from loramerge.errors import NotExpressible

    half = "x" * (MAX_HEADER_BYTES // 2)
    build_header([("a", "F32", (1,))], {"one": half})
    with pytest.raises(NotExpressible, match="longer than the format allows"):
        build_header([("a", "F32", (1,))], {"one": half, "two": half})
