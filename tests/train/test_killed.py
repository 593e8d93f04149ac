"""A run that is killed at any time and resumed ends with the bytes of an undisturbed one."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from loramerge.cli.main import main  # noqa: E402
from loramerge.files.run_log import read_log  # noqa: E402
from tests.builders.commands import ROOT  # noqa: E402
from tests.builders.pictures import folder_of  # noqa: E402
from tests.builders.pipelines import pipeline_folder  # noqa: E402

pytestmark = pytest.mark.peers
STEPS = 30


def command(folder: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "loramerge", "train", "--base", str(pipeline_folder()), "--images",
        "pictures", "--trigger", "zuzu", "--steps", str(STEPS), "--rank", "2", "--lr", "0.01",
        "--dropout", "0.1", "--ema", "0.9", "--sample-every", "15", "--sample-steps", "2",
        "--save-every", "10", "--state-every", "7", "--device", "cpu", "-q", *more,
    ]  # fmt: skip


def start(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "errors.txt").open("ab") as errors:
        return subprocess.Popen(command(folder, *more), cwd=folder, env=env, stderr=errors)


def lines(folder: Path) -> int:
    return sum(1 for _ in read_log(folder / "out-run" / "log.jsonl"))


@pytest.mark.long_tail
def test_kill_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "pictures", 5)
    monkeypatch.chdir(tmp_path)
    assert main(command(tmp_path, "-o", "whole.safetensors")[3:]) == 0
    draw = random.Random()
    killed = 0
    for _ in range(20):
        run = start(tmp_path, "-o", "out.safetensors", "--resume")
        wanted = lines(tmp_path) + draw.randrange(1, STEPS // 2) if killed < 1 else STEPS * 2
        while run.poll() is None and lines(tmp_path) < wanted:
            time.sleep(0.005)
        if run.poll() is not None:
            break
        run.kill()  # no time to tidy up
        run.wait()
        killed += 1
    assert run.returncode == 0, (tmp_path / "errors.txt").read_text()
    assert killed, "it was never killed"
    same = {"out.safetensors": "whole.safetensors"}
    same |= {f"out-run/{n}": f"whole-run/{n}" for n in ("log.jsonl", "samples.png")}
    same |= {f"out-run/out-{n:06}.safetensors": f"whole-run/whole-{n:06}.safetensors"
             for n in range(10, STEPS + 1, 10)}  # fmt: skip
    for ours, theirs in same.items():
        assert (tmp_path / ours).read_bytes() == (tmp_path / theirs).read_bytes(), ours
