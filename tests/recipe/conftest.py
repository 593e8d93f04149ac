"""The folder of tests/cli, and small ways to write and run recipes in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from zlib import crc32

import pytest

from loramerge.adapter.load import load
from loramerge.adapter.save import save
from tests.builders.world import make_world

_KEPT = 6  # one module in so many: recipes are about files and steps, not about modules

Writes = Callable[..., Path]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `work` copies: that of tests/cli, with fewer modules in its adapters."""
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    for name in ("a.safetensors", "b.safetensors"):
        whole = load(folder / name)
        kept = whole.with_deltas(
            {s: d for s, d in whole.deltas.items() if crc32(s.name.encode()) % _KEPT == 0}
        )
        save(kept, folder / f"small-{name}", to=whole.info.dialect, dtype="F16")
        (folder / f"small-{name}").replace(folder / name)
    return folder


@pytest.fixture
def recipe(work: Path) -> Writes:
    """Writes a recipe into `work`."""

    def write(text: str, name: str = "recipe.yaml") -> Path:
        path = work / name
        path.write_text(dedent(text).lstrip("\n"), "utf-8")
        return path

    return write
