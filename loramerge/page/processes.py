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
from pathlib import Path
from typing import Any

from loramerge.errors import LoramergeError
from loramerge.files.json_values import values_in

__all__ = ["WorkerEnded", "WorkerError", "WorkerProcess"]

Listener = Callable[[dict[str, Any]], None]
_PATIENCE = 20.0  # seconds that a worker has to end by itself


class WorkerError(LoramergeError):
    """What a worker answered instead of a result; `content` is its JSON."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__(str(content.get("text")))
        self.content = {"hint": None, **content}
        self.exit_code = int(content.get("exit_code", 70))


class WorkerEnded(LoramergeError):
    """The process of a worker ended before it answered."""


class WorkerProcess:
    """One process, started at its first request and again if it ended.

    Args:
        folder: the current folder of the process.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._number = 0
        self._waiting: dict[int, tuple[asyncio.Future[Any], Listener]] = {}
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
            self._start()
        self._number += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = (future, listener)
        self._send({**request, "id": self._number})
        return self._number, future

    def stop(self, number: int) -> None:
        """Interrupt a request as Ctrl-C does; its answer says that it was stopped."""
        self._send({"stop": number})

    def end(self, patience: float = _PATIENCE) -> None:
        """End the process: what runs is interrupted first, and killed if it does not end in time."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            if process.stdin is not None:
                process.stdin.close()
        except OSError:
            pass
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _send(self, content: Mapping[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(content) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it ended; the reader says so

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        flags = getattr(subprocess, "CREATE_NO_WINDOW", 0)
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "loramerge.page.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self._folder,
            encoding="utf-8",
            errors="replace",
            creationflags=flags,
            start_new_session=os.name != "nt",  # Ctrl-C in the terminal is the server's alone
        )

        def tell(line: str) -> None:
            loop.call_soon_threadsafe(self._heard, line)

        threading.Thread(target=self._listen, args=(process, tell, loop), daemon=True).start()
        threading.Thread(target=self._keep, args=(process,), daemon=True).start()

    def _listen(
        self, process: subprocess.Popen[str], tell: Callable[[str], None], loop: Any
    ) -> None:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                tell(line)
            process.wait()
            loop.call_soon_threadsafe(self._ended, process)
        except RuntimeError:
            pass  # the loop is closed: the server ends

    def _keep(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self._last.append(line.rstrip())

    def _heard(self, line: str) -> None:
        content = values_in(line)
        future, listener = self._waiting.get(content["id"], (None, None))
        if future is None or listener is None:
            return
        if "event" in content:
            listener(content["event"])
            return
        del self._waiting[content["id"]]
        if future.done():
            return
        if "error" in content:
            future.set_exception(WorkerError(content["error"]))
        else:
            future.set_result(content.get("result"))

    def _ended(self, process: subprocess.Popen[str]) -> None:
        if self._process not in (process, None):
            return
        waiting, self._waiting = self._waiting, {}
        for future, _ in waiting.values():
            if not future.done():
                said = "\n".join(self._last)
                future.set_exception(
                    WorkerEnded(
                        f"the process that computes ended with code {process.returncode}",
                        found=said[-2000:] or None,
                        hint="it may have been too little memory",
                    )
                )
