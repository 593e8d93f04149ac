"""A small base and two adapters in a folder of their own, and a way to run commands there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loramerge.cli.main import main
from tests.builders.world import make_world

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Result:
    """What a command ended with and printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON; it must hold nothing else."""
        return json.loads(self.out)


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and time."""
    return {
        str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns)
        for p in sorted(folder.rglob("*"))
        if not {"loramerge-home", "__pycache__"} & set(p.parts) and p.is_file()
    }


class Runner:
    """Runs commands in a folder, in this process or one of its own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Result:
        """Run a command here."""
        self._capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = self._capsys.readouterr()
        return Result(code, captured.out, captured.err)

    def ok(self, *arguments: str | Path) -> Result:
        """Run a command that must succeed."""
        result = self(*arguments)
        assert result.code == 0, result.err or result.out
        return result

    def refused(
        self, code: int, *arguments: str | Path, says: str | tuple[str, ...] = ()
    ) -> Result:
        """Run a command that must end with `code`, say why in its own words, and write nothing."""
        before = self.state()
        result = self(*arguments)
        assert result.code == code, (result.code, result.err, result.out)
        assert "Traceback" not in result.err
        assert result.out == ""
        lines = [line for line in result.err.splitlines() if line.lower().startswith("error: ")]
        assert len(lines) == 1, result.err
        for words in (says,) if isinstance(says, str) else says:
            assert words in result.err, (words, result.err)
        assert self.state() == before
        return result

    def state(self) -> dict[str, tuple[int, int]]:
        """Every file below the folder with its size and time."""
        return state_of(self.folder)

    def process(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Run a command in a process of its own."""
        environment = {**os.environ, **options.pop("env", {}), "PYTHONPATH": str(ROOT)}
        options.setdefault("stdout", subprocess.PIPE)
        return subprocess.run(
            [sys.executable, "-m", "loramerge", *arguments],
            cwd=self.folder,
            env=environment,
            stderr=subprocess.PIPE,
            timeout=120,
            **options,
        )


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `work` copies."""
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


@pytest.fixture
def work(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: base.safetensors, a.safetensors (kohya, UNet only), b.safetensors."""
    folder = tmp_path / "work"
    folder.mkdir()
    os.link(world / "base.safetensors", folder / "base.safetensors")
    for name in ("a.safetensors", "b.safetensors"):
        shutil.copy(world / name, folder / name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "100")
    return folder


@pytest.fixture
def run(work: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    """Runs commands in `work`."""
    return Runner(work, capsys)
