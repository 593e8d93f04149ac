"""Bars, sparklines and colours on terminals; plain text elsewhere."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from loramerge.cli import show
from loramerge.cli.bars import BarColumn
from tests.builders.world import rewrite

BLOCKS = set("▁▂▃▄▅▆▇█▏▎▍▌▋▊▉")


@pytest.fixture
def terminal(monkeypatch):
    """Standard output is a terminal of 80 columns."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("loramerge.cli.show._width", lambda stream=None: 80)
    monkeypatch.setattr("loramerge.cli.show._is_terminal", lambda: True)


def broken(run):
    def edit(arrays, metadata):
        name = next(name for name in arrays if arrays[name].ndim == 2)
        arrays[name] = np.full_like(arrays[name], np.nan)

    rewrite(run.folder / "a.safetensors", run.folder / "bad.safetensors", edit)


def test_terminals_show_bars_and_sparklines(run, terminal):
    shown = run.ok("inspect", "a", "--spectrum").out
    assert "spectrum" in shown and BLOCKS & set(shown)
    assert max(len(re.sub("\x1b.*?m", "", line)) for line in shown.splitlines()) <= 80
    for words in (("diff", "a", "b"), ("resize", "a", "--curve")):
        assert BLOCKS & set(run.ok(*words).out)


def test_output_to_programs_is_plain(run):
    broken(run)
    for words in (("inspect", "a", "--spectrum"), ("diff", "a", "b"), ("resize", "a", "--curve")):
        shown = run.ok(*words).out
        assert not BLOCKS & set(shown) and "\x1b" not in shown
    assert "\x1b" not in run("inspect", "bad", "--deep").out


def test_only_severities_are_coloured(run, terminal, monkeypatch):
    broken(run)
    shown = run("inspect", "bad", "--deep").out
    assert re.search("\x1b\\[31m(\x1b\\[1m)?error", shown)
    assert "\x1b[3" not in run.ok("inspect", "a", "--deep").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in run("inspect", "bad", "--deep").out


def test_bars_are_left_out_where_they_do_not_fit(capsys, monkeypatch):
    rows = [("a" * 16, "b" * 16), ("c", "d")]
    for width, there in ((80, True), (46, True), (38, False)):
        monkeypatch.setattr("loramerge.cli.show._width", lambda stream=None, width=width: width)
        show.table(rows, ("one", "two"), drawn=BarColumn("size", [1.0, 0.5]))
        shown = capsys.readouterr().out
        assert bool(BLOCKS & set(shown)) == there and "one" in shown
        assert max(map(len, shown.splitlines())) <= width


def test_code_pages_without_blocks_get_other_letters(capsys, monkeypatch):
    class Old:
        encoding = "cp1252"

        def __getattr__(self, name):
            return getattr(out, name)

    out = sys.stdout
    monkeypatch.setattr("loramerge.cli.show._width", lambda stream=None: 80)
    monkeypatch.setattr(sys, "stdout", Old())
    show.table([("a", "b")], ("one", "two"), drawn=BarColumn("size", [1.0]))
    assert "############" in capsys.readouterr().out
