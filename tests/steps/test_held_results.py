"""Results of any size are written with a few modules in memory: the rest lies in a file meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from loramerge.files import spool
from tests.builders.commands import Runner
from tests.builders.world import tune
from tests.tail import first

COMMANDS = [
    ("mix", "a.safetensors:0.5", "b.safetensors", "--method", "tsv-m"),
    ("extract", "-t", "tuned.safetensors", "-b", "base.safetensors", "--rank", "3"),
    ("resize", "a.safetensors", "--rank", "2"),
    ("mix", "a.safetensors:0.5", "b.safetensors", "--rank", "3", "--fair"),
    ("convert", "b.safetensors", "--to", "kohya", "--dtype", "float32"),
]


@pytest.mark.parametrize("words", first(2, COMMANDS), ids=lambda words: words[0])
def test_the_bytes_do_not_depend_on_where_results_are_held(
    words: tuple[str, ...], run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "extract" in words:
        tune(run.folder / "base.safetensors", run.folder / "tuned.safetensors")
    monkeypatch.setattr(spool, "_ROOM", 1 << 40)
    run.ok(*words, "-o", "out.safetensors")
    in_memory = Path("out.safetensors").read_bytes()
    held = []
    monkeypatch.setattr(spool, "_ROOM", 0)
    monkeypatch.setattr(
        spool,
        "SpooledTensor",
        type("Counted", (spool.SpooledTensor,), {"__init__": _counted(held)}),
    )
    run.ok(*words, "-o", "out.safetensors", "--force")
    assert Path("out.safetensors").read_bytes() == in_memory
    assert held
    assert [path for path in run.folder.iterdir() if path.name.startswith(".")] == []


def _counted(held: list[str]):
    init = spool.SpooledTensor.__init__

    def counted(self, file, start, dtype, shape) -> None:
        held.append(dtype)
        init(self, file, start, dtype, shape)

    return counted
