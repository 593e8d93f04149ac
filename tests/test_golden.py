"""The golden list, and files of an earlier version that still repeat."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden_inputs import make, read, write
from tests.tail import first, tail

HERE = Path(__file__).resolve().parent
OLD = HERE / "data" / "old_headers"

DEFAULT = (
    "mix", "resize-rank", "kind-lokr", "bake", "mix-shipped", "inspect", "diff", "meta", "names",
    "errors", "kind-dora-out", "families-full-width", "family-flux2-klein-4b",
    "recipe-style-and-character", "python",
)  # fmt: skip

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each command is a fork")


def _environment() -> dict[str, str]:
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _golden(*options: str) -> None:
    command = [
        sys.executable,
        str(HERE / "golden.py"),
        "check",
        str(HERE / "golden.json"),
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]


@pytest.mark.long_tail(keep=2)
@pytest.mark.parametrize("case", first(4, DEFAULT))
def test_a_case_of_the_golden_list_gives_what_it_gave(case: str) -> None:
    """If a difference is meant: record those cases again, and say in the commit why they differ."""
    _golden("--only", case)


@pytest.mark.slow
def test_the_golden_list_gives_what_it_gave() -> None:
    _golden("--jobs", "2")


# ---- files that an earlier version wrote


def _loramerge(folder: Path, *words: str, codes: tuple[int, ...] = (0,)) -> str:
    command = [sys.executable, "-m", "loramerge", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=_environment())
    assert done.returncode in codes, done.stderr
    return done.stdout


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder of outputs of an earlier version, with what they were made of."""
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    make("single/sd15", folder / "base.safetensors")
    return folder


def _repeats(folder: Path, name: str) -> None:
    # on another processor the last bits may be others, which is told by 1
    again = json.loads(_loramerge(folder, "run", name, "--json", codes=(0, 1)))
    assert again["relative_distance"] < 1e-3, again


@pytest.mark.parametrize("name", ["mix-base", tail("mix"), tail("resize"), tail("convert")])
def test_an_old_header_is_understood_and_repeated(old: Path, name: str) -> None:
    planned = _loramerge(old, "plan", f"{name}.safetensors")
    assert "steps:" in planned and "result:" in planned
    _repeats(old, f"{name}.safetensors")


def test_inputs_that_are_gone_are_made_again_from_an_old_header(old: Path) -> None:
    (old / "resize.safetensors").unlink()
    (old / "mix.safetensors").unlink()
    _repeats(old, "convert.safetensors")


def test_an_old_bake_is_repeated(old: Path) -> None:
    """The checkpoint is made anew, since it is large, and gets the header of then."""
    options = ["-b", "base.safetensors", "convert.safetensors:0.8", "scaled.safetensors"]
    how = ["--rounding", "stochastic", "--seed", "3", "-o", "new.safetensors", "--strip", "-q"]
    _loramerge(old, "bake", *options, *how)
    header = json.loads((old / "bake.json").read_text("utf-8"))
    write(old / "bake.safetensors", read(old / "new.safetensors")[0], header)
    assert "result:" in _loramerge(old, "plan", "bake.safetensors")
    _repeats(old, "bake.safetensors")


@pytest.mark.long_tail
def test_an_old_training_is_repeated(old: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    assert "train:" in _loramerge(old, "plan", "train.safetensors")
    _repeats(old, "train.safetensors")
