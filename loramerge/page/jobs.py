"""The queue of jobs: one runs at a time, each in a process of its own; what ran before is remembered."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from loramerge.errors import LoramergeError, NotFound, UsageError
from loramerge.files.json_values import read_values
from loramerge.files.writer import write_bytes
from loramerge.page.processes import WorkerError, WorkerProcess
from loramerge.page.worker import error_json

__all__ = ["Job", "Jobs"]

_ACTIVE = ("waiting", "running")
_EVENTS = 200  # notes and warnings that a job keeps
_MOST = 500  # jobs that are remembered
_SHOWN_EVERY = 0.1  # seconds between two messages of progress


@dataclass
class Job:
    """One piece of work.

    Args:
        request: what a worker is asked: `{"do": "run", "verb": …, "values": …}`.
        command: the command line that does the same.
        state: waiting, running, done, failed, cancelled, stopped (it kept what it had), or lost (the
            server ended before it did).
        created, started, ended: seconds since 1970.
    """

    id: str
    title: str
    request: dict[str, Any]
    command: str = ""
    state: str = "waiting"
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    progress: dict[str, Any] | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    result: Any = None
    error: dict[str, Any] | None = None

    def json(self) -> dict[str, Any]:
        """Return the job as the page gets it."""
        content = asdict(self)
        request = content.pop("request")
        result = self.result if isinstance(self.result, Mapping) else {}
        return {
            **content,
            "verb": request.get("verb"),
            "values": request.get("values"),
            "recipe": request.get("recipe"),
            "outputs": list(result.get("outputs") or ()),
        }


class Jobs:
    """The queue and the history.

    Args:
        folder: the current folder of all jobs.
        store: folder that remembers them.
        tell: told of each change of a job.
    """

    def __init__(self, folder: Path, store: Path, tell: Callable[[Job], None]) -> None:
        self._folder, self._store, self._tell = folder, store, tell
        self._jobs: dict[str, Job] = {job.id: job for job in _remembered(store)}
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._worker: WorkerProcess | None = None
        self._number = 0
        self._running: Job | None = None
        self._shown = 0.0
        for job in self._jobs.values():
            if job.state in _ACTIVE:
                job.state = "lost"

    def all(self) -> list[Job]:
        """Return all jobs, the newest first."""
        return sorted(self._jobs.values(), key=lambda job: -job.created)

    def get(self, number: str) -> Job:
        """Return a job.

        Raises:
            NotFound: if there is none of this number.
        """
        if number not in self._jobs:
            raise NotFound(f"there is no job {number[:40]!r}")
        return self._jobs[number]

    def add(self, title: str, request: Mapping[str, Any], command: str = "") -> tuple[Job, bool]:
        """Put a job in the queue, and return it; True if the same one is waiting or running already."""
        for other in self._jobs.values():
            if other.state in _ACTIVE and other.request == request:
                return other, True
        job = Job(uuid.uuid4().hex[:12], title, dict(request), command, created=time.time())
        self._jobs[job.id] = job
        self._queue.put_nowait(job.id)
        self._changed(job)
        return job, False

    def stop(self, number: str) -> Job:
        """Cancel a job that waits, or interrupt the one that runs.

        Raises:
            NotFound: if there is none. UsageError: if it has ended.
        """
        job = self.get(number)
        if job.state == "waiting":
            self._end(job, "cancelled")
        elif job is self._running and self._worker is not None:
            self._worker.stop(self._number)
        else:
            raise UsageError("this job has ended already")
        return job

    def forget(self, number: str) -> None:
        """Take a job that has ended off the history; its files stay.

        Raises:
            NotFound: if there is none. UsageError: if it has not ended.
        """
        job = self.get(number)
        if job.state in _ACTIVE:
            raise UsageError("this job has not ended yet", hint="stop it first")
        del self._jobs[number]
        _path(self._store, job.id).unlink(missing_ok=True)

    async def run(self) -> None:
        """Run jobs for ever, one after the other."""
        while True:
            job = self._jobs.get(await self._queue.get())
            if job is not None and job.state == "waiting":
                await self._perform(job)

    def close(self) -> None:
        """Interrupt what runs, and end its process."""
        if self._worker is not None:
            self._worker.end()

    async def _perform(self, job: Job) -> None:
        self._running, self._worker = job, WorkerProcess(self._folder)
        job.state, job.started = "running", time.time()
        self._changed(job)
        try:
            self._number, answer = self._worker.begin(
                job.request, lambda event: self._heard(job, event)
            )
            job.result = await answer
            state = "done"
        except WorkerError as error:
            job.error = error.content
            state = "cancelled" if error.exit_code == 130 else "failed"
        except LoramergeError as error:
            job.error, state = error_json(error), "failed"
        finally:
            self._running = None
        worker, self._worker = self._worker, None
        self._end(job, state)
        await asyncio.get_running_loop().run_in_executor(None, worker.end)

    def _heard(self, job: Job, event: dict[str, Any]) -> None:
        if event.get("kind") != "progress":
            if event not in job.events and len(job.events) < _EVENTS:
                job.events.append(event)
            self._tell(job)
            return
        job.progress = {name: value for name, value in event.items() if name != "kind"}
        now = time.monotonic()
        if now - self._shown >= _SHOWN_EVERY or event["done"] >= event["total"]:
            self._shown = now
            self._tell(job)

    def _end(self, job: Job, state: str) -> None:
        job.state, job.ended = state, time.time()
        self._changed(job)

    def _changed(self, job: Job) -> None:
        """Remember a job as it is now, and tell of it."""
        self._store.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(job), ensure_ascii=True, default=str)
        write_bytes(_path(self._store, job.id), text.encode(), force=True)
        self._tell(job)


def _path(store: Path, number: str) -> Path:
    return store / f"{number}.json"


def _remembered(store: Path) -> list[Job]:
    """Return the jobs that were written, the newest ones; older ones are deleted."""
    known = {one.name for one in fields(Job)}
    found = []
    for path in store.glob("*.json") if store.is_dir() else ():
        try:
            content = read_values(path)
            found.append(Job(**{name: content[name] for name in known & content.keys()}))
        except (OSError, ValueError, TypeError):  # a file that something else damaged
            continue
    found.sort(key=lambda job: -job.created)
    for job in found[_MOST:]:
        _path(store, job.id).unlink(missing_ok=True)
    return found[:_MOST]
