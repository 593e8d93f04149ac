"""Tensors of one element are read together as each is alone."""

import os
import struct

import numpy as np
import pytest

from loramerge.errors import CorruptFile, FileError
from loramerge.files.header import build_header
from loramerge.files.reader import TensorFile
from loramerge.files.tensors import ArrayTensor, RawTensor, scalars

VALUES = {
    "half": ("F16", (), struct.pack("<e", 1.5)),
    "same": ("F16", (1,), struct.pack("<e", 1.5)),
    "single": ("F32", (1, 1), struct.pack("<f", -2.25)),
    "brain": ("BF16", (), b"\x80\x3f"),
    "whole": ("I64", (1,), struct.pack("<q", 8)),
    "unlike": ("I16", (), struct.pack("<e", 1.5)),  # the bytes of another type
    "two": ("F32", (2,), struct.pack("<ff", 1, 2)),
    "none": ("F32", (0,), b""),
    "eighth": ("F8_E4M3", (), b"\x38"),
}


@pytest.fixture
def path(tmp_path):
    entries = [(name, dtype, shape) for name, (dtype, shape, _) in VALUES.items()]
    head, _ = build_header(entries, {})
    file = tmp_path / "numbers.safetensors"
    file.write_bytes(head + b"".join(raw for _, _, raw in VALUES.values()))
    return file


def test_they_are_what_each_gives(path):
    tensors = TensorFile(path).tensors
    found = scalars(tensors)
    assert found == {name: tensors[name].item() for name in found}
    # float8 needs numpy, and the others are not one number
    assert found.keys() == VALUES.keys() - {"two", "none", "eighth"}


def test_what_is_in_memory_is_left_out():
    held = {"raw": RawTensor(b"\0\0\0\0", "F32", ()), "array": ArrayTensor(np.ones(1))}
    assert scalars(held) == {}


def test_a_file_that_changed_is_refused(path):
    tensors = TensorFile(path).tensors
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(1, 1))
    with pytest.raises(FileError, match="changed while it was read"):
        scalars(tensors)


def test_a_file_that_became_shorter_is_refused(path):
    tensors = TensorFile(path).tensors
    os.truncate(path, path.stat().st_size - 30)
    with pytest.raises(CorruptFile, match="became shorter"):
        scalars(tensors)


def test_they_are_read_without_pread(path, monkeypatch):
    tensors = TensorFile(path).tensors
    expected = scalars(tensors)
    monkeypatch.delattr(os, "pread", raising=False)
    assert scalars(tensors) == expected
