"""Processes killed at random moments: what has a name of its own is whole.

`LORAMERGE_KILLS=500 python -m pytest -m slow tests/attack/test_kills.py` tries as many; a failure names
its seed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loramerge.adapter.load import load
from loramerge.checkpoint import open_checkpoint
from tests.builders.commands import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="signals differ there"),
]

RECIPE = """version: 1
inputs: {a: a.safetensors, b: b.safetensors}
steps:
  m: {mix: {adapters: [a, b]}, save: out/m.safetensors}
  r: {resize: {adapter: m, rank: 2}, save: out/r.safetensors}
"""
COMMANDS = {
    "mix": "mix a.safetensors b.safetensors:0.5 -o out/x.safetensors",
    "bake": "bake -b base.safetensors a.safetensors -o out/x.safetensors",
    "merge": "merge base.safetensors:0.7 base.safetensors:0.3 -o out/x.safetensors",
    "run": "run r.yaml",
    "convert": "convert a.safetensors --to peft -o out/folder",
    "resize": "resize --rank 2 many --out-dir out",
    "heal": "heal many --dtype float32 --out-dir out",
    "unbake": "unbake base.safetensors --lora a.safetensors -o out/x.safetensors",
    "page": "diff a.safetensors b.safetensors --html out/page.html",
}
OUTCOMES = (0, 130, -signal.SIGTERM, -signal.SIGKILL)  # a signal may come before Python listens


def _command(words: str) -> tuple[list[str], dict[str, str]]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(Path("temporary").absolute()),
    }
    return [sys.executable, "-m", "loramerge", *words.split()], environment


def _took(words: str) -> float:
    """Return the seconds that a command takes when nobody kills it."""
    command, environment = _command(words)
    start = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    shutil.rmtree("out")
    return time.perf_counter() - start


def _kill(words: str, number: signal.Signals, delay: float) -> int:
    """Run a command, kill it after a time, and return its exit code."""
    command, environment = _command(words)
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    time.sleep(delay)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert b"Traceback" not in err and b"bug:" not in err, err
    return process.returncode


def _judge(folder: Path) -> None:
    """Everything with a name of its own can be read to the end."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix == ".html":
            assert path.read_bytes().rstrip().endswith(b"</html>")
            continue
        if path.suffix == ".safetensors" and path.stat().st_size > 2**20:
            tensors = open_checkpoint(path).files.weights[0].open()[0].values()
        else:
            tensors = [t for delta in load(path).deltas.values() for t in delta.stored().values()]
        assert tensors
        for tensor in tensors:
            tensor.numpy()


@pytest.mark.parametrize("verb", COMMANDS)
def test_killed_at_random_moments(run, verb):
    Path("r.yaml").write_text(RECIPE, "utf-8")
    Path("many").mkdir()
    Path("temporary").mkdir()
    for number in range(4):
        shutil.copy("a.safetensors", f"many/a{number}.safetensors")
    before = run.state()
    took = _took(COMMANDS[verb])
    seed = random.Random(verb)
    for _ in range(int(os.environ.get("LORAMERGE_KILLS", "60")) // len(COMMANDS)):
        sort = seed.choice((signal.SIGKILL, signal.SIGTERM))
        code = _kill(COMMANDS[verb], sort, seed.uniform(0.2, 1.1) * took)
        assert code in OUTCOMES, (verb, sort, code)
        out = Path("out")
        if out.is_dir():
            _judge(out)
            hidden = [path.name for path in out.iterdir() if path.name.startswith(".")]
            assert sort == signal.SIGKILL or not hidden, (verb, hidden)
            shutil.rmtree(out)
        for path in Path("temporary").iterdir():
            assert sort == signal.SIGKILL
            shutil.rmtree(path)
        Path("r.state.json").unlink(missing_ok=True)
        left = {name for name in run.state() if not name.startswith("loramerge-home")}
        assert left == set(before), (verb, left ^ set(before))
