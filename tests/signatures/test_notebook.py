"""The script of typical use runs, and says its types."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.commands import ROOT

SCRIPT = Path(__file__).with_name("notebook.py")
WRONG = """
import loramerge as lm

a = lm.load("zuzu")
lm.mix([(a, 0.5)], rnak=3)
lm.resize(a, rank="8")
lm.mix([(a, "x")])
lm.convert(a, keep=3)
lm.load(3)
"""


def _checked(*paths: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    config = ("--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(cache))
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *config, *map(str, paths)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


def test_it_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(SCRIPT))


@pytest.mark.long_tail
def test_the_types_are_those_it_says(tmp_path):
    """And wrong use is found: one process checks both, since mypy reads the package each time."""
    pytest.importorskip("mypy")
    wrong = tmp_path / "wrong.py"
    wrong.write_text(WRONG, "utf-8")
    done = _checked(SCRIPT, wrong, cache=tmp_path / "cache")
    lines = [int(n) for n in re.findall(r"wrong\.py:(\d+): error", done.stdout)]
    assert sorted(set(lines)) == [5, 6, 7, 8, 9], done.stdout + done.stderr
    others = [
        line for line in done.stdout.splitlines() if ": error" in line and "wrong.py" not in line
    ]
    assert others == []


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "loramerge" / "py.typed").is_file()
