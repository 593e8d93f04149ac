"""Several files that are one result: all appear, or nothing has changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from loramerge.errors import FileError, OutputExists
from loramerge.files import atomic
from loramerge.files.together import AtomicFiles

NAMES = ("x.pt", "x.text_encoder.pt", "x.ti.pt")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def write(
    folder: Path, names: tuple[str, ...], stale: tuple[str, ...] = (), **options: Any
) -> None:
    targets = [folder / name for name in names]
    with AtomicFiles(targets, stale=[folder / name for name in stale], **options) as partial:
        for name in names:
            (partial / name).write_bytes(b"new")


def test_all_appear(tmp_path: Path) -> None:
    write(tmp_path, NAMES)
    assert contents(tmp_path) == dict.fromkeys(NAMES, b"new")


def test_files_of_the_older_result_do_not_stay_beside_the_new_one(tmp_path: Path) -> None:
    write(tmp_path, NAMES)
    with pytest.raises(OutputExists):
        write(tmp_path, NAMES[:1], NAMES[1:])
    write(tmp_path, NAMES[:1], NAMES[1:], force=True)
    assert contents(tmp_path) == {NAMES[0]: b"new"}


@pytest.mark.parametrize("old", [(), NAMES, NAMES[1:]])
@pytest.mark.parametrize("failing", range(6))
def test_a_failed_rename_restores_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: tuple[str, ...], failing: int
) -> None:
    for name in old:
        (tmp_path / name).write_bytes(b"old")
    monkeypatch.setattr(atomic.time, "sleep", lambda _: None)
    replace, done = os.replace, 0

    def fails(source: Any, target: Any) -> None:
        nonlocal done
        done += 1
        if done == failing + 1:
            raise OSError(5, "the disk is gone")
        replace(source, target)

    monkeypatch.setattr(atomic.os, "replace", fails)
    if failing < len(NAMES) + len(old):
        with pytest.raises(FileError):
            write(tmp_path, NAMES, force=True)
        assert contents(tmp_path) == dict.fromkeys(old, b"old")


def test_an_error_while_they_are_built_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), AtomicFiles([tmp_path / "x.pt"]) as partial:
        (partial / "x.pt").write_bytes(b"half")
        raise RuntimeError("stop")
    assert contents(tmp_path) == {}


def test_files_that_appear_meanwhile_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process writes one of them after all have been looked for."""
    check = AtomicFiles._check
    calls = []

    def checked(files: AtomicFiles) -> None:
        check(files)
        calls.append(files)
        if len(calls) == 2:
            (tmp_path / NAMES[0]).write_bytes(b"theirs")

    monkeypatch.setattr(AtomicFiles, "_check", checked)
    with pytest.raises(OutputExists):
        write(tmp_path, NAMES)
    assert contents(tmp_path) == {NAMES[0]: b"theirs"}


def test_the_file_that_names_the_result_appears_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def noted(way: Any) -> Any:
        def rename(source: Any, target: Any) -> None:
            order.append(Path(target).name)
            way(source, target)

        return rename

    monkeypatch.setattr(atomic.os, "replace", noted(os.replace))
    monkeypatch.setattr(atomic.os, "link", noted(os.link))
    write(tmp_path, NAMES)
    assert order == list(reversed(NAMES))
