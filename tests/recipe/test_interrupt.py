"""Runs that are stopped: whatever is there is whole, and a second run ends as an undisturbed one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import loramerge as lm
from loramerge.errors import OutputExists
from loramerge.files.writer import write_bytes
from loramerge.recipe import state as state_module
from loramerge.recipe.state import State
from tests.builders.commands import ROOT
from tests.tail import crossed, tail

SWEEP = """
version: 1
sweep: {w: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
steps:
  blend: {mix: {adapters: ["a.safetensors:${w}", b.safetensors]}}
  small: {resize: {adapter: blend, rank: 2}, save: "out/${w}.safetensors"}
  last: {mix: {adapters: [{each: small}]}, save: out/last.safetensors}
"""
OUTPUTS = 7
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def outputs(folder: Path = Path("out")) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.safetensors"))}


def stamps() -> dict[str, tuple[int, int]]:
    return {
        p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in Path("out").glob("*.safetensors")
    }


def recorded() -> set[str]:
    """Names of the outputs that the state says are finished."""
    try:
        content = json.loads(Path("recipe.state.json").read_text("utf-8"))
    except FileNotFoundError:
        return set()
    return {Path(task["output"]).name for task in content["tasks"].values()}


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run that nothing disturbs gives."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for name in ("a.safetensors", "b.safetensors"):
        shutil.copy(world / name, folder / name)
    (folder / "recipe.yaml").write_text(SWEEP.lstrip("\n"), "utf-8")
    with contextlib.chdir(folder):
        lm.run("recipe.yaml", threads=1)
        found = outputs()
    assert len(found) == OUTPUTS
    return found


@pytest.fixture
def undisturbed(recipe, whole: dict[str, bytes]) -> dict[str, bytes]:
    """The same, beside a folder with the recipe and nothing made yet."""
    recipe(SWEEP)
    return whole


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "loramerge", "run", "recipe.yaml", "--threads", "1", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def stop_after(count: int, how: signal.Signals, *arguments: str, delay: float = 0.0) -> Any:
    """Send a signal once so many outputs are there; return the code and what was said."""
    process = start(*arguments)
    limit = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < limit:
        if len(list(Path("out").glob("*.safetensors"))) >= count:
            time.sleep(delay)
            process.send_signal(how)
            break
        time.sleep(0.001)
    _, said = process.communicate(timeout=60)
    return process.returncode, said.decode()


@pytest.mark.long_tail(keep=1)
@posix
@pytest.mark.parametrize(("count", "jobs"), [(0, "1"), (3, "2"), tail(1, "1"), tail(5, "1")])
def test_killed_and_started_again(undisturbed, count: int, jobs: str) -> None:
    delay = random.Random(count).uniform(0.0, 0.03)
    code, _ = stop_after(count, signal.SIGKILL, "--jobs", jobs, delay=delay)
    assert code == -signal.SIGKILL
    for name, content in outputs().items():  # each is whole
        assert content == undisturbed[name]
    finished, before = recorded(), stamps()
    assert finished <= before.keys()
    process = start("--jobs", jobs)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert outputs() == undisturbed
    after = stamps()
    assert all(after[name] == before[name] for name in finished)


@pytest.mark.long_tail(keep=1)
@posix
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_interrupted_and_started_again(undisturbed, jobs: str) -> None:
    code, said = stop_after(2, signal.SIGINT, "--jobs", jobs)
    assert code == 130, said
    assert "interrupted; no half-written file was left" in said
    assert "Traceback" not in said
    found = outputs()
    assert 2 <= len(found) < OUTPUTS
    for name, content in found.items():
        assert content == undisturbed[name]
    rest = [p.name for p in Path("out").iterdir() if p.suffix != ".safetensors"]
    assert rest == []
    before, finished = stamps(), recorded()
    assert len(finished) >= len(found) - 1  # one may have been caught just before it was noted
    result = lm.run("recipe.yaml", threads=1)
    assert outputs() == undisturbed
    after = stamps()
    for name in finished:
        assert after[name] == before[name]
    made = [o for o in result.outcomes.values() if o.task.lasts and o.status == "done"]
    assert len(made) == OUTPUTS - len(finished)


class Stop(BaseException):
    """Stands for the end of the process."""


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize(("index", "moment"), crossed([0, 3, 6], ["begin", "made", "finish"]))
def test_stopped_at_every_moment_of_a_task(
    undisturbed, monkeypatch, moment: str, index: int
) -> None:
    """Before an output is made, after it is there but before that is noted, and after."""
    plain_begin, plain_finish = State.begin, State.finish
    seen = {"begin": -1, "finish": -1}

    def begin(self: State, task: Any) -> None:
        plain_begin(self, task)
        seen["begin"] += task.save is not None
        if moment == "begin" and seen["begin"] == index and task.save is not None:
            raise Stop

    def finish(self: State, task: Any, record: Any) -> None:
        seen["finish"] += 1
        if moment == "made" and seen["finish"] == index:
            raise Stop
        plain_finish(self, task, record)
        if moment == "finish" and seen["finish"] == index:
            raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(State, "begin", begin)
        patched.setattr(State, "finish", finish)
        with pytest.raises(Stop):
            lm.run("recipe.yaml", threads=1)
    assert len(outputs()) == {"begin": index}.get(moment, index + 1)
    assert len(recorded()) == {"finish": index + 1}.get(moment, index)
    before = stamps()
    finished = recorded()
    lm.run("recipe.yaml", threads=1)
    assert outputs() == undisturbed
    assert all(stamps()[name] == before[name] for name in finished)


def test_stopped_just_before_the_state_is_replaced(undisturbed, monkeypatch) -> None:
    """The state that stays was written here, so the outputs that it names are still this recipe's."""
    written = []

    def write(path: Path, raw: bytes, *, force: bool) -> None:
        if len(written) == 3:
            raise Stop
        written.append(raw)
        write_bytes(path, raw, force=force)

    with monkeypatch.context() as patched:
        patched.setattr(state_module, "write_bytes", write)
        with pytest.raises(Stop):
            lm.run("recipe.yaml", threads=1)
    assert State.beside(Path("recipe.yaml"), Path()).trusted
    lm.run("recipe.yaml", threads=1)
    assert outputs() == undisturbed


def test_a_file_of_another_program_after_a_stop_is_not_replaced(undisturbed, monkeypatch) -> None:
    """The output that was being made never came to be; a file put there since is refused."""

    def begin(self: State, task: Any) -> None:
        plain(self, task)
        if task.save is not None:
            raise Stop

    plain = State.begin
    with monkeypatch.context() as patched:
        patched.setattr(State, "begin", begin)
        with pytest.raises(Stop):
            lm.run("recipe.yaml", threads=1)
    lm.run("recipe.yaml", threads=1)
    Path("out/last.safetensors").write_bytes(b"mine")
    with pytest.raises(OutputExists, match="exists"):
        lm.run("recipe.yaml", threads=1)
    assert Path("out/last.safetensors").read_bytes() == b"mine"
