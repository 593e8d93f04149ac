"""Temporary folders: gone when they are left, and swept by the next run where it was killed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from loramerge.files.temporary import _mark, scratch_folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path


def test_a_scratch_folder_goes_with_whatever_ends_it(temporary: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch_folder("loramerge") as folder:
        (folder / "f").touch()
        assert folder.parent == temporary
        raise KeyboardInterrupt
    assert not list(temporary.iterdir())


def test_scratch_folders_of_killed_processes_are_removed_by_the_next(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = temporary / f".loramerge.{_mark(2**22 + 1)}-0123456789.partial"
    (dead / "again").mkdir(parents=True)
    (dead / "again" / "f").touch()
    (temporary / ".theirs.partial").mkdir()
    with scratch_folder("loramerge"):
        assert not dead.exists()
    assert [path.name for path in temporary.iterdir()] == [".theirs.partial"]
