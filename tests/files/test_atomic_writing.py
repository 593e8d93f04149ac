"""A file appears whole under its name or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from loramerge.errors import DiskFull, FileError, NotExpressible, OutputExists
from loramerge.files import atomic, temporary
from loramerge.files.atomic import AtomicFile, AtomicFolder, check_space, check_target
from loramerge.files.header import build_header
from loramerge.files.positioned import PositionedFile
from loramerge.files.reader import TensorFile
from loramerge.files.tensors import ArrayTensor, RawTensor, Tensor
from loramerge.files.writer import write_bytes, write_tensors


class Failing(RawTensor):
    def raw(self) -> bytes:
        raise RuntimeError("the power went out")


def one(value: int = 1) -> list[tuple[str, Tensor]]:
    return [("a", RawTensor(bytes([value]) * 8, "F64", (1,)))]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record waiting instead of waiting."""
    waits: list[float] = []
    monkeypatch.setattr(atomic.time, "sleep", waits.append)
    return waits


def only(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_an_existing_output_is_refused_without_force(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(OutputExists) as caught:
        write_tensors(path, one(), {})
    assert caught.value.exit_code == 3 and "force=True" in str(caught.value)
    assert path.read_bytes() == b"precious"
    write_tensors(path, one(), {}, force=True)
    assert list(TensorFile(path).tensors) == ["a"]
    assert only(tmp_path) == {path.name}


def test_a_failure_in_the_middle_leaves_the_target_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(RuntimeError, match="power"):
        write_tensors(path, [*one(), ("b", Failing(b"", "F64", (1,)))], {}, force=True)
    assert path.read_bytes() == b"precious"
    assert only(tmp_path) == {path.name}


def test_a_target_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(OutputExists), AtomicFile(path) as file:
        file.write(0, b"ours")
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert only(tmp_path) == {"a"}


@pytest.mark.parametrize("links", [True, False])
def test_one_of_several_writers_of_a_file_wins_and_the_others_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """All have looked before any has renamed, which is where two once both thought to have won."""
    if not links:  # as on FAT: the second sees the first, if not at the same instant

        def no_links(*_: object) -> None:
            raise OSError(1, "not permitted")

        monkeypatch.setattr(atomic.os, "link", no_links)
    path, writers = tmp_path / "a", 8
    ready = threading.Barrier(writers)
    turn = threading.Lock() if not links else contextlib.nullcontext()
    flush = atomic.PositionedFile.flush

    def together(file: PositionedFile) -> None:
        flush(file)
        ready.wait(30)

    monkeypatch.setattr(atomic.PositionedFile, "flush", together)
    claim = atomic.claim

    def in_turn(source: Path, target: Path) -> None:
        with turn:
            claim(source, target)

    monkeypatch.setattr(atomic, "claim", in_turn)

    def one_of(number: int) -> bool:
        try:
            with AtomicFile(path) as file:
                file.write(0, bytes([number]) * 1000)
        except OutputExists:
            return False
        return True

    with ThreadPoolExecutor(writers) as pool:
        won = list(pool.map(one_of, range(writers)))
    assert won.count(True) == 1
    assert path.read_bytes() == bytes([won.index(True)]) * 1000
    assert only(tmp_path) == {"a"}


def test_an_output_may_be_an_input(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, [("x", ArrayTensor(np.arange(4.0))), ("y", ArrayTensor(np.ones(3)))], {})
    file = TensorFile(path)
    swapped = [("y", file.tensors["y"]), ("x", file.tensors["x"])]
    write_tensors(path, swapped, {"again": "yes"}, force=True)
    again = TensorFile(path)
    assert list(again.tensors) == ["y", "x"]
    assert np.array_equal(again.tensors["x"].numpy(), np.arange(4.0))
    with pytest.raises(FileError, match="changed"):
        file.tensors["x"].numpy()


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_bytes(tmp_path / "new" / "deeper" / "a", b"x")
    assert (tmp_path / "new" / "deeper" / "a").read_bytes() == b"x"


def test_a_folder_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(FileError, match="existing folder"):
        write_bytes(tmp_path / "a", b"x", force=True)
    (tmp_path / "f").write_bytes(b"x")
    with pytest.raises(FileError, match="cannot make the folder"):
        write_bytes(tmp_path / "f" / "a", b"x")
    assert only(tmp_path) == {"a", "f"}


def test_long_and_foreign_names_are_written(tmp_path: Path) -> None:
    for name in ("ü 名 [v2] — x.safetensors", "n" * 250, "é" * 120):
        write_bytes(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"


def test_a_file_held_for_a_moment_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patient: list[float]
) -> None:
    replace, tries = os.replace, iter([PermissionError, PermissionError, None])

    def held(source: Any, target: Any) -> None:
        failure = next(tries)
        if failure:
            raise failure(errno.EACCES, "in use")
        replace(source, target)

    monkeypatch.setattr(atomic.os, "replace", held)
    (tmp_path / "a").write_bytes(b"old")
    write_bytes(tmp_path / "a", b"x", force=True)
    assert (tmp_path / "a").read_bytes() == b"x"
    assert len(patient) == 2


def test_a_file_held_for_good_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patient: list[float]
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"precious")

    def held(source: Any, target: Any) -> None:
        raise PermissionError(errno.EACCES, "in use")

    monkeypatch.setattr(atomic.os, "replace", held)
    with pytest.raises(FileError, match="another program holds it open") as caught:
        write_bytes(path, b"x", force=True)
    assert caught.value.file == str(path)
    assert sum(patient) < 5
    assert path.read_bytes() == b"precious" and only(tmp_path) == {"a"}


def test_too_small_a_disk_is_said_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(DiskFull, match="not enough free space") as caught:
        write_tensors(tmp_path / "not" / "yet" / "a", one(), {})
    assert caught.value.exit_code == 3 and "with output" in str(caught.value)
    assert only(tmp_path) == set()
    check_space(tmp_path / "a", 10)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_is_said(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskFull, match="the disk is full") as caught:
        write_bytes(tmp_path / "a.b", b"x")
    assert caught.value.file == str(tmp_path / "a.b")  # not the temporary one
    assert only(tmp_path) == set()


def test_another_write_error_is_a_file_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwrite", broken)
    with pytest.raises(FileError, match="cannot write: Input/output error"):
        write_bytes(tmp_path / "a", b"x")


# --- folders -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "adapter"
    with AtomicFolder(path) as partial:
        (partial / "f").write_bytes(b"old")
    yield path
    assert only(tmp_path) == {"adapter"}


def test_a_folder_appears_whole(folder: Path) -> None:
    assert (folder / "f").read_bytes() == b"old"
    with pytest.raises(OutputExists):
        AtomicFolder(folder)


def test_a_folder_is_replaced(folder: Path) -> None:
    with AtomicFolder(folder, force=True) as partial:
        (partial / "g").write_bytes(b"new")
    assert only(folder) == {"g"}


def test_a_folder_survives_a_failure(folder: Path) -> None:
    with pytest.raises(RuntimeError), AtomicFolder(folder, force=True) as partial:
        (partial / "g").write_bytes(b"new")
        raise RuntimeError("stop")
    assert only(folder) == {"f"}


def test_a_folder_survives_a_failing_rename(
    folder: Path, monkeypatch: pytest.MonkeyPatch, patient: list[float]
) -> None:
    replace = os.replace

    def held(source: Any, target: Any) -> None:
        if str(source).endswith(".partial"):
            raise PermissionError(errno.EACCES, "in use")
        replace(source, target)

    monkeypatch.setattr(atomic.os, "replace", held)
    with (
        pytest.raises(FileError, match="holds it open"),
        AtomicFolder(folder, force=True) as partial,
    ):
        (partial / "g").write_bytes(b"new")
    assert only(folder) == {"f"}


def test_a_users_folder_of_a_like_name_is_kept(tmp_path: Path) -> None:
    likes = ("adapter.partial", "adapter.old.partial", ".adapter.partial")
    for name in ("adapter", *likes):
        (tmp_path / name).mkdir()
        (tmp_path / name / "theirs").write_bytes(b"precious")
    with AtomicFolder(tmp_path / "adapter", force=True) as partial:
        (partial / "g").write_bytes(b"new")
    assert only(tmp_path / "adapter") == {"g"}
    assert only(tmp_path) == {"adapter", *likes}
    assert all(only(tmp_path / name) == {"theirs"} for name in likes)


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(OutputExists), AtomicFolder(tmp_path / "a") as partial:
        (partial / "g").write_bytes(b"ours")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "f").write_bytes(b"theirs")
    assert only(tmp_path) == {"a"} and only(tmp_path / "a") == {"f"}


@pytest.mark.parametrize("force", [False, True])
def test_one_of_several_writers_of_a_folder_wins(tmp_path: Path, force: bool) -> None:
    writers = 6
    together = threading.Barrier(writers)

    def write(number: int) -> bool:
        try:
            with AtomicFolder(tmp_path / "a", force=force) as partial:
                together.wait()
                for name in "fgh":
                    (partial / name).write_bytes(bytes([number]))
                together.wait()
            return True
        except OutputExists:
            return False

    with ThreadPoolExecutor(writers) as pool:
        won = sum(pool.map(write, range(writers)))
    assert won == (writers if force else 1)
    assert only(tmp_path) == {"a"} and only(tmp_path / "a") == set("fgh")
    assert len({(tmp_path / "a" / name).read_bytes() for name in "fgh"}) == 1


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    with pytest.raises(FileError, match="expected a folder"):
        AtomicFolder(tmp_path / "f", force=True)


@pytest.mark.skipif(os.name != "posix", reason="only there can a process be asked whether it lives")
def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    abandoned = tmp_path / f".out.safetensors.{temporary._mark(dead.pid)}-0a1b2c.partial"
    living = tmp_path / f".out.safetensors.{temporary._mark(os.getpid())}-0a1b2c.partial"
    elsewhere = tmp_path / f".out.safetensors.00000000-{dead.pid}-0a1b2c.partial"
    for path in (abandoned, living, elsewhere):
        path.write_bytes(b"half")
    folder = tmp_path / f".out.{temporary._mark(dead.pid)}-0a1b2c.partial"
    folder.mkdir()
    (folder / "f").write_bytes(b"half")
    write_bytes(tmp_path / "out.safetensors", b"whole")
    assert not abandoned.exists() and not folder.exists()
    assert living.exists() and elsewhere.exists()
    assert (tmp_path / "out.safetensors").read_bytes() == b"whole"


# --- links and permissions -----------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="links and permissions differ there")
def test_a_replaced_file_keeps_its_permissions_and_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    write_bytes(tmp_path / "link", b"new", force=True)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640
    (tmp_path / "dangling").symlink_to("later")
    write_bytes(tmp_path / "dangling", b"new")
    assert (tmp_path / "later").read_bytes() == b"new" and (tmp_path / "dangling").is_symlink()


@pytest.mark.skipif(os.name != "posix", reason="links and permissions differ there")
def test_a_linked_folder_is_replaced_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o750)
    (tmp_path / "link").symlink_to("real")
    with AtomicFolder(tmp_path / "link", force=True) as partial:
        (partial / "g").write_bytes(b"new")
    assert (tmp_path / "link").is_symlink() and only(tmp_path / "real") == {"g"}
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o750
    assert only(tmp_path) == {"real", "link"}


@pytest.mark.skipif(os.name != "posix", reason="no such files here")
def test_pipes_and_devices_are_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "null"):
        with pytest.raises(FileError, match="expected a file"):
            write_bytes(tmp_path / name, b"new", force=True)
    assert (tmp_path / "pipe").is_fifo() and Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "a\x1b[31m", "a\x9b", "a\ud800", "a\udc80"])
def test_an_output_needs_a_name_of_plain_characters(name, tmp_path):
    for suffix in (".safetensors", ""):
        with pytest.raises(FileError, match="names of files should not have") as caught:
            check_target(tmp_path / f"{name}{suffix}", force=True)
        assert caught.value.found in map(ascii, name)


def test_a_file_that_has_such_a_name_may_be_replaced(tmp_path):
    path = tmp_path / "a\x7f"
    path.write_bytes(b"")
    assert check_target(path, force=True) == path


def test_no_header_holds_half_of_a_surrogate_pair():
    for entries, metadata in (([("a\ud800", "F32", (1,))], {}), ([], {"a": "\udfff"})):
        with pytest.raises(NotExpressible, match="surrogate"):
            build_header(entries, metadata)
