"""The process that computes: lines in, lines out, and every way in which it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.page.test_jobs import LONG

pytestmark = pytest.mark.xdist_group("page")


class Worker:
    """A worker process, asked by hand."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "loramerge.page.worker"],
            cwd=folder,
            env={**os.environ, "LORAMERGE_HOME": str(folder / "home")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def send(self, **content: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"opened": [], **content}) + "\n")
        self.process.stdin.flush()

    def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def answer(self) -> dict[str, Any]:
        """Return the next line that is no event."""
        while "event" in (found := self.line()):
            pass
        return found

    def ended(self) -> tuple[int, str]:
        """Return the exit code and what was printed beside the answers."""
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    found = Worker(tmp_path)
    yield found
    found.process.kill()
    found.process.wait()
    for stream in (found.process.stdin, found.process.stdout, found.process.stderr):
        with suppress(OSError):  # what was not sent yet
            stream.close()  # type: ignore[union-attr]


def _long(worker: Worker) -> None:
    worker.send(id=1, do="recipe", run=True, text=LONG, force=True)
    while worker.line()["event"].get("done") != 2:
        pass


def test_requests_are_answered_in_order_and_strange_ones_refused(worker: Worker) -> None:
    strange = ["os", "../run", "__init__", "run.os", "", "a b", None, 1]
    for number, what in enumerate(strange):
        worker.send(id=number, do=what)
    worker.send(id="last", do="run", verb="inspect", values={"files": ["zuzu"]})
    for number in range(len(strange)):
        found = worker.answer()
        assert found["id"] == number and found["error"]["exit_code"] == 2, found
    assert len(worker.answer()["result"]) == 1


def test_a_request_is_stopped_before_and_while_it_runs_and_the_next_is_answered(
    worker: Worker,
) -> None:
    worker.send(stop=1)
    worker.send(stop="nothing of this number")
    worker.send(id=1, do="run", verb="inspect", values={"files": ["zuzu"]})
    assert worker.answer()["error"]["exit_code"] == 130
    worker.send(id=2, do="recipe", run=True, text=LONG, force=True)
    while worker.line()["event"].get("done") != 2:
        pass
    worker.send(stop=2)
    assert worker.answer() == {
        "id": 2, "error": {"text": "stopped; no half-written file was left", "exit_code": 130},
    }  # fmt: skip
    worker.send(id=3, do="run", verb="inspect", values={"files": ["zuzu"]})
    assert "result" in worker.answer()


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("how", ["end of input", "SIGTERM"])
def test_it_ends_by_itself_with_what_it_writes_whole(
    how: str, worker: Worker, tmp_path: Path
) -> None:
    _long(worker)
    worker.send(
        id=2, do="run", verb="mix", values={"adapters": ["zuzu"], "output": "2.safetensors"}
    )
    if how == "SIGTERM":
        worker.process.send_signal(signal.SIGTERM)
        worker.process.wait(60)
    code, said = worker.ended()
    assert (code, said) == (0, "")
    assert not [path for path in tmp_path.rglob(".*") if ".partial" in path.name]
    assert not (tmp_path / "2.safetensors").exists()  # what waited is not begun


def test_a_reader_that_is_gone_does_not_break_it(worker: Worker, tmp_path: Path) -> None:
    assert worker.process.stdout is not None
    worker.process.stdout.close()
    worker.send(
        id=1, do="run", verb="mix", values={"adapters": ["zuzu"], "output": "1.safetensors"}
    )
    worker.process.stdin.close()  # type: ignore[union-attr]
    assert worker.process.wait(60) == 0
    assert not [path for path in tmp_path.rglob(".*") if ".partial" in path.name]
