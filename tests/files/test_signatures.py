"""Files of other formats are named, wherever a file of tensors is opened, with what to do."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest

from loramerge.adapter.load import load
from loramerge.checkpoint import open_checkpoint
from loramerge.errors import ForeignFile, LoramergeError
from loramerge.files.pickled import load_pickle
from loramerge.files.reader import TensorFile
from loramerge.files.signatures import SIGNATURES
from tests.builders.commands import Runner
from tests.files.test_header import ONE, raw_file

PAGE = b"<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 144\n"
# content → words of the message, words of the hint
FILES: dict[str, tuple[bytes, str, str]] = {
    "page": (PAGE, "this is a web page", "log in"),
    "page in small letters": (b"\xef\xbb\xbf\n  <html lang='en'>" + bytes(50), "web page", "log in"),
    "error of a bucket": (b'<?xml version="1.0"?><Error/>', "web page or another XML file", "log in"),
    "pointer": (POINTER, "this is a Git LFS pointer", "git lfs pull"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(64), "this is a GGUF file", "ends in .gguf"),
    "pickle": (pickle.dumps({"a": 1}, 2), "this is a PyTorch file", "ends in .pt or .ckpt"),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(40), "this is a gzip archive", "extract it"),
    "rar": (b"Rar!\x1a\x07" + bytes(40), "this is a RAR archive", "extract it"),
    "seven": (b"7z\xbc\xaf\x27\x1c" + bytes(40), "this is a 7-Zip archive", "extract it"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(40), "this is an HDF5 file", "safetensors"),
    "index": (json.dumps({"weight_map": {}}).encode(), "this is a JSON file", "safetensors"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(40), "this is a PNG image", "an image cannot be one"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(40), "this is a JPEG image", "an image cannot be one"),
    "webp": (b"RIFF\x24\0\0\0WEBP" + bytes(40), "this is a WebP image", "an image cannot be one"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_format_is_named(name: str, tmp_path: Path) -> None:
    content, words, hint = FILES[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    for opener in (TensorFile, load, open_checkpoint):
        with pytest.raises(ForeignFile, match=words) as caught:
            opener(path)
        assert "not a safetensors file" in str(caught.value)
        assert hint in str(caught.value.hint)
        assert (caught.value.exit_code, caught.value.file) == (3, str(path))


def test_a_zip_may_be_a_file_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"")
    with pytest.raises(ForeignFile, match="a zip archive or a PyTorch file"):
        TensorFile(path)


@pytest.mark.parametrize("name", [n for n in FILES if n != "pickle"])
def test_under_the_name_of_a_pickle_it_is_named_too(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(FILES[name][0])
    for opener in (load_pickle, load, open_checkpoint):
        with pytest.raises(ForeignFile, match=FILES[name][1]):
            opener(path)


def test_safetensors_under_the_name_of_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(raw_file({"a": ONE}))
    with pytest.raises(ForeignFile, match="this is a safetensors file") as caught:
        load_pickle(path)
    assert ".safetensors" in str(caught.value.hint)


def test_every_signature_is_tried() -> None:
    contents = [content.lower() for content, _, _ in FILES.values()]
    untried = [
        s
        for s in SIGNATURES
        if not any(s.start in content[:32] for content in contents)
        and s.format != "a pickle of an old protocol"  # tried below
    ]
    assert {one.start[:1] for one in untried} == {b"p", b"\x80"}  # zip; later protocols of pickles


def test_a_header_may_begin_like_a_file_of_another_format(tmp_path: Path) -> None:
    """A length of 640 is written as a pickle of protocol 2 begins, and is read all the same."""
    header = json.dumps({"a": ONE}).encode().ljust(0x0280)
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_file(header))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert list(TensorFile(path).tensors) == ["a"]


def test_text_of_no_known_format_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"dear diary, today I renamed a text file")
    with pytest.raises(LoramergeError, match="not a valid safetensors file"):
        TensorFile(path)


@pytest.mark.parametrize("protocol", [0, 1])
@pytest.mark.parametrize("content", [{"a": [1.5]}, [1, 2], OrderedDict(a=1)])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_pickles_of_old_protocols_are_named(
    protocol: int, content: object, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(ForeignFile, match="a pickle of an old protocol"):
        load(tmp_path / name)


@pytest.mark.parametrize("entries", [["notes.txt"], []])
def test_an_archive_of_other_things_is_named_wherever_it_is_given(
    entries: list[str], run: Runner
) -> None:
    with zipfile.ZipFile(run.folder / "x.ckpt", "w") as file:
        for entry in entries:
            file.writestr(entry, "words")
    for command in (("meta",), ("base", "add", "name"), ("inspect",)):
        run.refused(3, *command, "x.ckpt", says="this is a zip archive")
