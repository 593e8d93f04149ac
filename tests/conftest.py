"""What every test gets: an empty home of its own, commands to run, and where real files lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders.commands import run, work, world

__all__ = ["run", "work", "world"]

_SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees, or leaves anything in, the user's configuration."""
    monkeypatch.setenv("LORAMERGE_HOME", str(tmp_path / "loramerge-home"))


@pytest.fixture
def shared_data() -> Path:
    """The folder of real adapters and key listings, or a skip where there is none."""
    if not _SHARED.is_dir():
        pytest.skip(f"no real files: {_SHARED.name} is absent beside the repository")
    return _SHARED
