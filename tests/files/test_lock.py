"""Of processes that change one file, each waits for the others."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loramerge.errors import FileError
from loramerge.files import lock
from loramerge.files.lock import locked


def _count(path: Path) -> None:
    with locked(path):
        number = int(path.read_text() or 0) if path.exists() else 0
        time.sleep(0.001)
        path.write_text(str(number + 1))


@pytest.mark.parametrize("system", [True, False], ids=["of the system", "a marking file"])
def test_no_change_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: bool) -> None:
    if not system:
        monkeypatch.setattr(lock, "_system_lock", lambda _: False)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(_count, [tmp_path / "n"] * 18))
    assert (tmp_path / "n").read_text() == "18"


def test_the_mark_of_a_killed_process_counts_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_system_lock", lambda _: False)
    (tmp_path / "n.locked").touch()
    os.utime(tmp_path / "n.locked", (time.time() - 60,) * 2)
    _count(tmp_path / "n")
    assert not (tmp_path / "n.locked").exists()


def test_a_lock_that_is_never_let_go_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_PATIENCE", 0.05)
    with locked(tmp_path / "n"), pytest.raises(FileError, match="another process"):
        _count(tmp_path / "n")


def test_an_error_lets_go(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path / "n"):
        raise RuntimeError("stop")
    _count(tmp_path / "n")


def test_a_folder_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="cannot be changed"), locked(tmp_path / "file" / "n"):
        pass
