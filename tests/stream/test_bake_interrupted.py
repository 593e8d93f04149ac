"""A bake that is interrupted, or whose files change meanwhile, leaves nothing."""

from __future__ import annotations

import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.errors import (
    FileError,
    LoramergeError,
)
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from tests.builders.baking import bake_into
from tests.builders.bases import (
    adapter_for,
    folder,
    single,
)


def test_a_late_entry_that_fails_leaves_nothing(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    late: Future[dict[str, str]] = Future()
    late.set_exception(LoramergeError("no digest"))
    with pytest.raises(LoramergeError, match="no digest"):
        bake_into(base, [(adapter_for("sd15"), 1.0)], tmp_path / "o.safetensors", late=late)
    assert [p.name for p in tmp_path.iterdir()] == ["base.safetensors"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
@pytest.mark.parametrize("kind", [single, folder])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_interruption_leaves_nothing(
    tmp_path: Path, error: type[BaseException], kind: Any, threads: int
) -> None:
    base = kind(tmp_path / "base.safetensors", "sd15")
    calls = 0

    def notify(event: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise error

    with pytest.raises(error):
        bake_into(
            base, [(adapter_for("sd15"), 1.0)], tmp_path / "out", notify=notify, threads=threads
        )
    assert [p.name for p in tmp_path.iterdir()] == ["base.safetensors"]


def test_a_base_cut_short_meanwhile_leaves_nothing(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    plan = plan_bake(open_checkpoint(base.path), [(adapter_for("sd15"), Weight())])
    with base.path.open("r+b") as file:
        file.truncate(base.path.stat().st_size // 2)
    with pytest.raises(LoramergeError, match="shorter"):
        bake(plan, tmp_path / "out.safetensors", threads=2)
    assert [p.name for p in tmp_path.iterdir()] == ["base.safetensors"]


@pytest.mark.parametrize("which", ["base", "adapter"])
def test_a_file_edited_while_it_is_baked_leaves_nothing(tmp_path: Path, which: str) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    save(adapter_for("sd15"), tmp_path / "a.safetensors", to="kohya")
    changed = tmp_path / ("base.safetensors" if which == "base" else "a.safetensors")
    before = changed.stat().st_mtime_ns

    def edit(_: object) -> None:
        with changed.open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"x")
        os.utime(changed, ns=(before + 1, before + 1))

    with pytest.raises(FileError, match="changed while it was read"):
        bake_into(base, [(load(tmp_path / "a.safetensors"), 1.0)], tmp_path / "out", notify=edit)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "base.safetensors"]
