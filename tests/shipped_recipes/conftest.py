"""A folder with the shipped recipes and, where they expect them, small adapters and bases."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from loramerge.cli.main import main
from tests.builders.commands import ROOT, Runner

RECIPES = ROOT / "recipes"
ADAPTERS = {
    "style": "a",
    "character": "b",
    "first": "a",
    "old": "b",
}  # name in the recipes → file of the world
BASES = ("base", "another-base", "trained-on")


@pytest.fixture(scope="session")
def larder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `kitchen` copies."""
    folder = tmp_path_factory.mktemp("larder")
    (folder / "adapters").mkdir()
    for name, source in ADAPTERS.items():
        shutil.copy(world / f"{source}.safetensors", folder / "adapters" / f"{name}.safetensors")
    a, b = (str(world / f"{name}.safetensors") for name in "ab")
    second, new = (str(folder / "adapters" / f"{n}.safetensors") for n in ("second", "new"))
    assert main(["resize", "-q", "--rank", "4", b, "-o", second]) == 0  # of the first one's rank
    assert main(["mix", "-q", f"{b}:0.9", f"{a}:0.1", "-o", new]) == 0
    return folder


@pytest.fixture
def kitchen(
    world: Path,
    larder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Runner:
    """Runs commands in a folder that holds the recipes and what they name."""
    folder = tmp_path / "kitchen"
    shutil.copytree(RECIPES, folder)
    shutil.copytree(larder / "adapters", folder / "adapters")
    (folder / "models").mkdir()
    for name in BASES:
        os.link(world / "base.safetensors", folder / "models" / f"{name}.safetensors")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "100")
    return Runner(folder, capsys)
