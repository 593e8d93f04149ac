"""Headers of GGUF files: read, refused with the reason, and built again."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from loramerge.errors import CorruptFile, FormatError, LoramergeError
from loramerge.files.forms import is_gguf
from loramerge.files.gguf import GgufFile
from loramerge.files.gguf_heads import build_gguf
from tests.builders.gguf import field, text, write_gguf

FIELDS = {
    "general.architecture": "flux",
    "general.name": "ünïcode",
    "tokens": ["a", "b"] * 40,
    "sizes": [3, 4],
    "comfy.gguf.orig_shape.b": [8, 2, 2, 2],
}


def sample(path: Path, **options: int) -> Path:
    ramp = np.arange(64, dtype="float32")
    tensors = {
        "b": (ramp, "Q8_0", (2, 32)),
        "a": (ramp[:6], "F32", (2, 3)),
        "c": (ramp[:5], "F16", (5,)),
    }
    return write_gguf(path, tensors, FIELDS, **options)


@pytest.mark.parametrize("alignment", [32, 64])
def test_tensors_fields_and_shapes(tmp_path: Path, alignment: int) -> None:
    file = GgufFile(sample(tmp_path / "x.gguf", alignment=alignment))
    found = {name: (t.dtype, t.shape) for name, t in file.tensors.items()}
    assert found == {"b": ("Q8_0", (8, 2, 2, 2)), "a": ("F32", (2, 3)), "c": ("F16", (5,))}
    assert file.tensors["b"].nbytes == 68 and len(file.tensors["b"].raw()) == 68
    assert file.tensors["a"].numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert file.metadata["general.name"] == "ünïcode" and "tokens" not in file.metadata
    assert file.fields["sizes"] == (3, 4) and file.fields["tokens"] is None
    assert is_gguf(file.path) and not is_gguf(tmp_path)


@pytest.mark.parametrize("alignment", [32, 64])
def test_the_same_head_is_built_again(tmp_path: Path, alignment: int) -> None:
    path = sample(tmp_path / "x.gguf", alignment=alignment)
    file = GgufFile(path)
    entries = [(name, t.dtype, t.shape) for name, t in file.tensors.items()]
    head, infos = file.rebuilt(entries, file.metadata)
    assert path.read_bytes().startswith(head)
    assert infos == file.header.tensors


def test_texts_are_added_replaced_and_left_out(tmp_path: Path) -> None:
    path = sample(tmp_path / "x.gguf")
    file = GgufFile(path)
    entries = [(name, t.dtype, t.shape) for name, t in file.tensors.items()]
    wanted = {k: v for k, v in file.metadata.items() if k != "general.name"} | {"recipe": "r"}
    head, _ = file.rebuilt(entries, wanted | {"general.architecture": "sd1"})
    data = path.read_bytes()[file.header.data_start :]
    (tmp_path / "y.gguf").write_bytes(head + data)
    after = GgufFile(tmp_path / "y.gguf")
    assert after.metadata == wanted | {"general.architecture": "sd1"}
    assert after.fields["sizes"] == (3, 4) and after.tensors["b"].shape == (8, 2, 2, 2)
    assert after.tensors["a"].raw() == file.tensors["a"].raw()


def edited(path: Path, old: bytes, new: bytes) -> Path:
    raw = sample(path).read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new, 1))
    return path


DIMS = text("a") + struct.pack("<I", 2)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b"GGUF\x03", b"GGUF\x01", "version of GGUF"),
        (b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03", "another byte order"),
        (struct.pack("<QQ", 3, 5), struct.pack("<QQ", 1 << 60, 5), "dimensions|ends"),
        (struct.pack("<QQ", 3, 5), struct.pack("<QQ", 3, 1 << 60), "ends before its header|type"),
        (field("sizes", [3, 4]), field("token", [3, 4]), None),
        (text("sizes"), text("tokens")[:13], "twice|unknown type|ends before"),
        (DIMS, text("b") + struct.pack("<I", 2), "name of a tensor occurs twice|original shape"),
        (DIMS, text("a") + struct.pack("<I", 9), "number of dimensions"),
        (struct.pack("<QQIQ", 3, 2, 0, 96), struct.pack("<QQIQ", 3, 2, 0, 32), "overlaps"),
        (struct.pack("<QQIQ", 3, 2, 0, 96), struct.pack("<QQIQ", 3, 2, 0, 100), "not aligned"),
        (struct.pack("<QQIQ", 3, 2, 0, 96), struct.pack("<QQIQ", 3, 2, 0, 9600), "data does"),
        (struct.pack("<QQIQ", 3, 2, 0, 96), struct.pack("<QQIQ", 3, 2, 5, 96), "type of this"),
        (struct.pack("<QQI", 32, 2, 8), struct.pack("<QQI", 31, 2, 8), "whole blocks"),
        (struct.pack("<IIQIIII", 9, 4, 4, 8, 2, 2, 2), struct.pack("<IIQIIII", 9, 4, 4, 9, 2, 2, 2),
         "original shape"),
    ],
)  # fmt: skip
def test_broken_headers(tmp_path: Path, old: bytes, new: bytes, says: str | None) -> None:
    path = edited(tmp_path / "x.gguf", old, new)
    if says is None:
        GgufFile(path)
        return
    with pytest.raises((CorruptFile, FormatError), match=says):
        GgufFile(path)


def test_no_cut_header_is_read(tmp_path: Path) -> None:
    raw = sample(tmp_path / "x.gguf").read_bytes()
    for size in range(4, len(raw) - 32, 41):
        (tmp_path / "cut.gguf").write_bytes(raw[:size])
        with pytest.raises(LoramergeError):
            GgufFile(tmp_path / "cut.gguf")


def test_convolutions_over_time_have_five_axes(tmp_path: Path) -> None:
    """ComfyUI-GGUF's tool adds those of Wan and HunyuanVideo as they are."""
    values = np.arange(48.0).reshape(2, 3, 2, 2, 2)
    path = write_gguf(tmp_path / "a.gguf", {"patch.weight": (values, "F32", values.shape)}, {})
    found = GgufFile(path).tensors["patch.weight"]
    assert found.shape == values.shape and np.array_equal(found.numpy(), values)


def test_a_new_file_is_read_with_its_fields_and_shapes(tmp_path: Path) -> None:
    entries = [("a.weight", "F16", (8, 4, 2, 8)), ("b.bias", "F32", (5,)), ("c", "F32", ())]
    head, infos = build_gguf(
        entries, {"note": "text"}, fields={"general.file_type": 7}, reshapes=True
    )
    stop = max(info.stop for info in infos.values())
    path = tmp_path / "a.gguf"
    path.write_bytes(head + bytes(stop + -stop % 32 - len(head)))
    file = GgufFile(path)
    assert file.fields["general.file_type"] == 7 and file.metadata["note"] == "text"
    assert [t.shape for t in file.tensors.values()] == [(8, 4, 2, 8), (5,), (1,)]
    assert file.fields["comfy.gguf.orig_shape.a.weight"] == (8, 4, 2, 8)
    again, _ = file.rebuilt(
        [(n, t.dtype, t.shape) for n, t in file.tensors.items()],
        {**file.metadata, "general.file_type": "1"},
    )
    (tmp_path / "b.gguf").write_bytes(again + path.read_bytes()[len(head) :])
    assert GgufFile(tmp_path / "b.gguf").fields["general.file_type"] == 1
