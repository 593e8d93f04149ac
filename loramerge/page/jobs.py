"""The queue of jobs: one runs at a time, each in a process of its own; what ran before is remembered."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from loramerge.errors import LoramergeError, NotFound, UsageError
from loramerge.page.history import History, Job
from loramerge.page.places import Places
from loramerge.page.processes import WorkerError, WorkerProcess
from loramerge.page.worker import error_json

__all__ = ["Job", "Jobs"]

_EVENTS = 200  # notes and warnings that a job keeps
_SHOWN_EVERY = 0.1  # seconds between two messages of progress


class Jobs:
    """The queue and the history.

    Args:
        places: what all jobs may use.
        store: folder that remembers them.
        tell: told of each change of a job, and whether it is its progress alone.
    """

    def __init__(self, places: Places, store: Path, tell: Callable[[Job, bool], None]) -> None:
        self._places, self._tell = places, tell
        self._history = History(store)
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._worker: WorkerProcess | None = None
        self._number = 0
        self._running: Job | None = None
        self._stopped = ""  # the job that a person stopped last
        self._free = asyncio.Event()
        self._free.set()
        self._ending = False
        self._shown = 0.0

    def all(self) -> list[Job]:
        """Return all jobs, the newest first."""
        self._history.refresh()
        return sorted(self._history.jobs.values(), key=lambda job: -job.created)

    def get(self, number: str) -> Job:
        """Return a job.

        Raises:
            NotFound: if there is none of this number.
        """
        self._history.refresh()
        if number not in self._history.jobs:
            raise NotFound(f"there is no job {number[:40]!r}")
        return self._history.jobs[number]

    def add(
        self,
        title: str,
        request: Mapping[str, Any],
        command: str = "",
        key: str = "",
        folder: str | None = None,
    ) -> tuple[Job, bool]:
        """Put a job in the queue, and return it; True if the same one is waiting or running already.

        Args:
            key: of what it does, see `Job`; empty is the command.

        Raises:
            FileError: if it cannot be remembered.
        """
        key = key or command
        with self._history.alone():
            for other in self.all():
                if (
                    other.is_active
                    and other.key == key
                    and other.request.get("do") == request["do"]
                ):
                    return other, True
            job = Job(
                uuid.uuid4().hex[:12],
                title,
                dict(request),
                command,
                key,
                folder,
                self._history.server,
                created=time.time(),
            )
            self._history.write(job)
        self._queue.put_nowait(job.id)
        self._tell(job, False)
        return job, False

    def stop(self, number: str) -> Job:
        """Cancel a job that waits, or interrupt the one that runs.

        Raises:
            NotFound: if there is none.
            UsageError: if it has ended, or another server has it.
        """
        job = self._own(number)
        if not job.is_active:
            raise UsageError("this job has ended already")
        self._stopped = job.id
        if job is self._running and self._worker is not None:
            self._worker.stop(self._number)
        else:
            self._end(job, "cancelled")
        return job

    def forget(self, number: str) -> None:
        """Take a job that has ended off the history; its files stay.

        Raises:
            NotFound: if there is none.
            UsageError: if it has not ended.
        """
        job = self.get(number)
        if job.is_active:
            raise UsageError("this job has not ended yet", hint="stop it first")
        self._history.forget(job)

    async def run(self) -> None:
        """Run jobs for ever, one after the other."""
        while True:
            job = self._history.jobs.get(await self._queue.get())
            if job is not None and job.state == "waiting" and not self._ending:
                await self._perform(job)

    def let_go(self) -> None:
        """Start no more jobs, and interrupt the one that runs; its process ends by itself."""
        self._ending = True
        if self._worker is not None:
            self._worker.let_go()

    async def ended(self, patience: float) -> None:
        """Wait a while for the end of the job that runs."""
        with suppress(TimeoutError):  # it writes what it has, and is told of as lost
            await asyncio.wait_for(self._free.wait(), patience)

    def close(self) -> None:
        """Let other servers know that nothing runs here any more."""
        self._history.close()

    def _own(self, number: str) -> Job:
        job = self.get(number)
        if job.is_active and job.server != self._history.server:
            raise UsageError(
                "another `loramerge ui` runs this job", hint="stop it on the page that started it"
            )
        return job

    async def _perform(self, job: Job) -> None:
        self._free.clear()
        worker = self._worker = WorkerProcess(self._places)
        self._running = job
        job.state, job.started = "running", time.time()
        try:
            self._changed(job)
            self._number, answer = worker.begin(job.request, lambda event: self._heard(job, event))
            job.result = await answer
            state = "stopped" if _is_unfinished(job.result) else "done"
        except WorkerError as error:
            job.error = error.content
            state = "cancelled" if error.exit_code == 130 else "failed"
            if state == "cancelled" and self._ending and job.id != self._stopped:
                job.lose()  # as the jobs that wait, and nobody asked for it
                state = job.state
        except (LoramergeError, OSError) as error:
            job.error, state = _error(error), "failed"
        finally:
            self._running = self._worker = None
        try:
            self._end(job, state)
        finally:
            self._free.set()
        # no thread of the loop, which the server waits for at its end: torch takes seconds to leave
        threading.Thread(target=worker.end, daemon=True).start()

    def _heard(self, job: Job, event: dict[str, Any]) -> None:
        if event.get("kind") != "progress":
            if event not in job.events and len(job.events) < _EVENTS:
                job.events.append(event)
                self._tell(job, False)
            return
        job.progress = {name: value for name, value in event.items() if name != "kind"}
        now = time.monotonic()
        if now - self._shown >= _SHOWN_EVERY or event["done"] >= event["total"]:
            self._shown = now
            self._tell(job, True)

    def _end(self, job: Job, state: str) -> None:
        job.state, job.ended = state, time.time()
        self._changed(job)

    def _changed(self, job: Job) -> None:
        """Remember a job as it is now, and tell of it; a full disk does not end the queue."""
        try:
            self._history.write(job)
        except (LoramergeError, OSError) as error:
            job.events.append({"kind": "warning", "text": f"this job is not remembered: {error}"})
        self._tell(job, False)


def _is_unfinished(result: Any) -> bool:
    """Return whether a result is that of a run that was interrupted and kept what it had."""
    return isinstance(result, Mapping) and result.get("unfinished") is True


def _error(error: LoramergeError | OSError) -> dict[str, Any]:
    if isinstance(error, LoramergeError):
        return error_json(error)
    return {
        "text": f"the process cannot be started: {error.strerror}",
        "hint": None,
        "exit_code": 3,
    }
