"""Where the system lacks a call, another gives the same bytes."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loramerge.errors import CorruptFile, DiskFull
from loramerge.files import positioned
from loramerge.files.digest import sha256_of_file
from loramerge.files.positioned import PositionedFile

DATA = os.urandom(100_003)
Patch = Callable[[pytest.MonkeyPatch], None]


def without(*names: str) -> Patch:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        for name in names:
            monkeypatch.delattr(os, name, raising=False)

    return patch


def range_copy_fails(code: int) -> Patch:
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return lambda monkeypatch: monkeypatch.setattr(os, "copy_file_range", fail, raising=False)


def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call does less than was asked for."""
    preadv, pwrite = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:999]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, view, at: pwrite(fd, view[:777], at))


SYSTEMS: dict[str, Patch] = {
    "as it is": without(),
    "without preadv": without("preadv"),
    "without pread": without("preadv", "pread"),
    "without pwrite": without("pwrite"),
    "without range copy": without("copy_file_range"),
    "without any": without("preadv", "pread", "pwrite", "copy_file_range"),
    "across file systems": range_copy_fails(errno.EXDEV),
    "range copy not supported": range_copy_fails(errno.EOPNOTSUPP),
    "range copy forbidden": range_copy_fails(errno.EPERM),
    "in short steps": short_steps,
}


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    SYSTEMS[request.param](monkeypatch)
    return str(request.param)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


def test_reading_gives_the_same_bytes(system: str, source: Path) -> None:
    with PositionedFile(source) as file:
        assert file.read(0, len(DATA)) == DATA
        assert file.read(70_000, 11) == DATA[70_000:70_011]
    assert sha256_of_file(source) == hashlib.sha256(DATA).hexdigest()


def test_writing_and_copying_give_the_same_bytes(
    system: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positioned, "COPY_BLOCK", 40_000)
    monkeypatch.setattr(positioned, "_PLAIN_BLOCK", 30_000)
    with PositionedFile(source) as file, PositionedFile(tmp_path / "target", "x") as target:
        target.resize(len(DATA) + 10)
        target.write(5, DATA[7:50_000])
        target.copy_from(file, 50_000, 5 + 49_993, 50_003)
    assert (tmp_path / "target").read_bytes() == bytes(5) + DATA[7:] + bytes(12)


def test_many_threads_read_their_own_bytes(system: str, source: Path) -> None:
    with PositionedFile(source) as file, ThreadPoolExecutor(8) as pool:
        places = [(i * 997) % 90_000 for i in range(200)]
        found = pool.map(lambda at: file.read(at, 1000), places)
        assert all(part == DATA[at : at + 1000] for at, part in zip(places, found, strict=True))


def test_a_file_cut_short_is_corrupt(system: str, source: Path, tmp_path: Path) -> None:
    with PositionedFile(source) as file, PositionedFile(tmp_path / "target", "x") as target:
        with pytest.raises(CorruptFile, match="became shorter"):
            file.read(len(DATA) - 5, 6)
        with pytest.raises(CorruptFile, match="became shorter"):
            target.copy_from(file, len(DATA) - 5, 0, 6)


def test_a_full_disk_while_copying_is_no_reason_to_try_another_way(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    range_copy_fails(errno.ENOSPC)(monkeypatch)
    with PositionedFile(source) as file, PositionedFile(tmp_path / "target", "x") as target:
        with pytest.raises(DiskFull) as caught:
            target.copy_from(file, 0, 0, 10)
        assert caught.value.file == str(tmp_path / "target")
