"""Workers, as the server holds them: processes that answer requests with lines of JSON."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from loramerge.errors import LoramergeError
from loramerge.files.json_values import values_in
from loramerge.page.places import Places
from loramerge.page.worker import LASTING

__all__ = ["Listener", "WorkerEnded", "WorkerError", "WorkerProcess"]

Listener = Callable[[dict[str, Any]], None]
_PATIENCE = 20.0  # seconds that a worker has to end by itself


class WorkerError(LoramergeError):
    """The error that a worker answered; `content` is its JSON."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__(str(content.get("text")))
        self.content = {"hint": None, **content}
        self.exit_code = int(content.get("exit_code", 70))


class WorkerEnded(LoramergeError):
    """The process of a worker ended before it answered."""


class _Pending(NamedTuple):
    """A request that waits for its answer."""

    process: subprocess.Popen[str]
    answer: asyncio.Future[Any]
    listener: Listener


class WorkerProcess:
    """One process, started at its first request and again if it ended.

    Args:
        places: what it may use; the current folder of the process is theirs.
        lasting: it answers many requests, and may remember what it found for a moment.
    """

    def __init__(self, places: Places, *, lasting: bool = False) -> None:
        self._places = places
        self._options = [LASTING] if lasting else []
        self._process: subprocess.Popen[str] | None = None
        self._number = 0
        self._pending: dict[int, _Pending] = {}
        self._last: deque[str] = deque(maxlen=20)

    async def ask(self, request: Mapping[str, Any], listener: Listener = lambda event: None) -> Any:
        """Return the answer to a request.

        Args:
            listener: told of events while it runs.

        Raises:
            WorkerError: what the request met. WorkerEnded: if the process ended.
        """
        return await self.begin(request, listener)[1]

    def begin(
        self, request: Mapping[str, Any], listener: Listener = lambda event: None
    ) -> tuple[int, asyncio.Future[Any]]:
        """Send a request, and return its number and the answer to come; see `ask`."""
        if self._process is None or self._process.poll() is not None:
            self.let_go()  # of one that has ended, what it was told through
            self._process = self._started()
        self._number += 1
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[self._number] = _Pending(self._process, answer, listener)
        opened = [os.fspath(path) for path in self._places.opened]
        self._send({**request, "id": self._number, "opened": opened})
        return self._number, answer

    def stop(self, number: int, *, gently: bool = False) -> None:
        """Interrupt a request as Ctrl-C does; its answer says that it was stopped.

        Args:
            gently: only where it tells of its progress, so that loaded models stay whole.
        """
        self._send({"stop": number, "gently": gently})

    def let_go(self) -> None:
        """Interrupt what runs; the process ends by itself, once what it writes is whole."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()

    def wait(self, patience: float) -> None:
        """Wait a while for the end of a process that was let go."""
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)

    def end(self, patience: float = _PATIENCE) -> None:
        """End the process: what runs is interrupted first, and killed if it does not end in time."""
        self.let_go()
        self.wait(patience)
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()

    def _send(self, content: Mapping[str, Any]) -> None:
        if self._process is None or self._process.stdin is None:
            return
        with suppress(OSError, ValueError):  # it ended, or was let go; the reader says so
            self._process.stdin.write(json.dumps(content) + "\n")
            self._process.stdin.flush()

    def _started(self) -> subprocess.Popen[str]:
        loop = asyncio.get_running_loop()
        process = subprocess.Popen(
            # -P: nothing is imported from the current folder, whose files may come from anyone
            [sys.executable, "-P", "-m", "loramerge.page.worker", *self._options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self._places.folder,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            encoding="utf-8",
            errors="replace",
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            start_new_session=os.name != "nt",  # Ctrl-C in the terminal is the server's alone
        )
        for read in (self._listen, self._keep):
            threading.Thread(target=read, args=(process, loop), daemon=True).start()
        return process

    def _listen(self, process: subprocess.Popen[str], loop: asyncio.AbstractEventLoop) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                _tell(loop, self._heard, line)
        process.wait()
        _tell(loop, self._ended, process)

    def _keep(self, process: subprocess.Popen[str], _: object) -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                self._last.append(line.rstrip())

    def _heard(self, line: str) -> None:
        try:
            content = values_in(line)
            asked = self._pending[content["id"]]
        except (ValueError, KeyError, TypeError):
            return  # half a line of a process that was killed, or an answer that nobody waits for
        if "event" in content:
            asked.listener(content["event"])
            return
        del self._pending[content["id"]]
        if asked.answer.done():
            return
        if "error" in content:
            asked.answer.set_exception(WorkerError(content["error"]))
        else:
            asked.answer.set_result(content.get("result"))

    def _ended(self, process: subprocess.Popen[str]) -> None:
        """Answer what a process has left unanswered."""
        lost = [number for number, one in self._pending.items() if one.process is process]
        said = "\n".join(self._last)
        for asked in map(self._pending.pop, lost):
            if not asked.answer.done():
                asked.answer.set_exception(
                    WorkerEnded(
                        f"the process that computes ended with code {process.returncode}",
                        found=said[-2000:] or None,
                        hint="it may have been too little memory",
                    )
                )


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in the loop, unless it is closed because the server has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
