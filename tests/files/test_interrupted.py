"""Ctrl-C between any two lines of an atomic write: nothing temporary stays, nothing is half of one."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from loramerge.errors import LoramergeError
from loramerge.files.atomic import AtomicFile, AtomicFolder
from loramerge.files.temporary import remove_unfinished, scratch_folder
from loramerge.files.together import AtomicFiles


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def a_file(folder: Path, force: bool) -> None:
    with AtomicFile(folder / "a", force=force) as file:
        file.write(0, b"new")


def a_folder(folder: Path, force: bool) -> None:
    with AtomicFolder(folder / "a", force=force) as place:
        for name in ("x", "y"):
            (place / name).write_bytes(b"new")


def files(folder: Path, force: bool) -> None:
    with AtomicFiles([folder / "x", folder / "y"], force=force, stale=[folder / "z"]) as place:
        for name in ("x", "y"):
            (place / name).write_bytes(b"new")


def scratch(folder: Path, force: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(folder))
        with scratch_folder("loramerge") as place:
            (place / "x").write_bytes(b"new")


Write = Callable[[Path, bool], None]
CASES: dict[str, tuple[Write, dict[str, bytes], dict[str, bytes]]] = {
    "a file": (a_file, {}, {"a": b"new"}),
    "a file over one": (a_file, {"a": b"old"}, {"a": b"new"}),
    "a folder": (a_folder, {}, {"a/x": b"new", "a/y": b"new"}),
    "a folder over one": (
        a_folder, {"a/x": b"old", "a/w": b"old"}, {"a/x": b"new", "a/y": b"new"},
    ),
    "files": (files, {}, {"x": b"new", "y": b"new"}),
    "files over others": (
        files, {"x": b"old", "y": b"old", "z": b"old"}, {"x": b"new", "y": b"new"},
    ),
    "a scratch folder": (scratch, {}, {}),
}  # fmt: skip


def interrupted_at(line: int, work: Callable[[], None]) -> bool:
    """Do something, with Ctrl-C before a line of it; return whether it has as many lines."""
    left = line

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal left
        if not frame.f_globals.get("__name__", "").startswith("loramerge."):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return trace

    def steps() -> Iterator[None]:
        # a frame of its own: Python does not forget an error whose handling a trace interrupts
        sys.settrace(trace)
        work()
        yield

    before = sys.gettrace()
    try:
        next(steps())
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return left <= 0


def wrongs(folder: Path, case: str, end: Callable[[], None]) -> list[str]:
    """Return each state that an interruption of a case may not leave, by its line."""
    write, old, new = CASES[case]
    found, line, reached = [], 0, True
    while reached:
        line += 1
        place = folder / str(line)
        for name, data in old.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
        place.mkdir(exist_ok=True)
        try:
            reached = interrupted_at(line, partial(write, place, bool(old)))
        except LoramergeError as error:
            found.append(f"{line}: {error}")
        end()
        if (left := contents(place)) not in (old, new):
            found.append(f"{line}: {left}")
    return found


@pytest.fixture(autouse=True)
def _pythons_own_handler() -> Any:
    gc.collect()
    gc.disable()  # what other tests left must not be finalized, and interrupted, in here
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    gc.enable()
    assert sys.exc_info() == (None, None, None)
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


@pytest.mark.parametrize("case", CASES)
def test_an_interruption_leaves_the_old_or_the_new(case: str, tmp_path: Path) -> None:
    assert wrongs(tmp_path, case, remove_unfinished) == []


def test_leaving_it_to_the_blocks_alone_is_wrong(tmp_path: Path) -> None:
    """It fails where the interruption comes before a block is entered, or as it ends."""
    assert wrongs(tmp_path, "a folder", lambda: None) != []
    remove_unfinished()
    assert not list(tmp_path.rglob(".*"))


def test_renaming_that_can_be_interrupted_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loramerge.files.atomic.deferred", lambda **_: nullcontext())
    assert wrongs(tmp_path, "a folder over one", remove_unfinished) != []
