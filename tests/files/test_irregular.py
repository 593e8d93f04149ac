"""Pipes, devices and sockets given as inputs are refused before they are opened."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loramerge.adapter.load import load
from loramerge.checkpoint.checkpoint import open_checkpoint
from loramerge.errors import FileError
from loramerge.files.digest import sha256_of_file
from loramerge.files.pickled import load_pickle
from loramerge.files.reader import TensorFile

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no named pipes here")

READERS: list[Callable[[Path], object]] = [
    TensorFile, load, load_pickle, sha256_of_file, open_checkpoint,
]  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_pipe_is_refused(reader: Callable[[Path], object], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"pipe{suffix}"
    os.mkfifo(path)
    with pytest.raises(FileError, match="found a pipe"):
        reader(path)


def test_devices_and_sockets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for reader in (TensorFile, load, load_pickle):
        with pytest.raises(FileError, match="found a device"):
            reader(Path("/dev/zero"))
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.safetensors")
        with pytest.raises(FileError, match="found a socket"):
            TensorFile("s.safetensors")
