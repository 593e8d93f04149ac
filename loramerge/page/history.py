"""Jobs as they are remembered: one file for each, in a folder that servers of one folder share.

A server holds the lock of a file of its own while it lives. So another one knows whether a job that
is written as running still is, or was lost with its server.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from loramerge.errors import FileError
from loramerge.files.json_values import read_values
from loramerge.files.lock import locked
from loramerge.files.writer import write_bytes

__all__ = ["ACTIVE", "History", "Job"]

ACTIVE = ("waiting", "running")
_MOST = 500  # jobs that are remembered
_PATIENCE = 5.0  # seconds that another server may take to put a job in its queue
_LOST = {"text": "the server ended before this did", "hint": "run it again", "exit_code": 130}


@dataclass
class Job:
    """One piece of work.

    Args:
        request: what a worker is asked: `{"do": "run", "verb": …, "values": …}`.
        command: the command line that does the same.
        key: jobs that do the same have the same.
        folder: of a training run, where its log and samples are.
        server: the one that runs it.
        state: waiting, running, done, failed, cancelled, stopped (it kept what it had), or lost (the
            server ended before it did).
        created, started, ended: seconds since 1970.
    """

    id: str
    title: str
    request: dict[str, Any]
    command: str = ""
    key: str = ""
    folder: str | None = None
    server: str = ""
    state: str = "waiting"
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    progress: dict[str, Any] | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    result: Any = None
    error: dict[str, Any] | None = None

    @property
    def is_active(self) -> bool:
        """True if it waits or runs."""
        return self.state in ACTIVE

    def lose(self) -> None:
        """Note that its server ended before it did."""
        self.state, self.error = "lost", dict(_LOST)

    def json(self) -> dict[str, Any]:
        """Return the job as the page gets it."""
        content = asdict(self)
        request = content.pop("request")
        del content["key"], content["server"]
        result = self.result if isinstance(self.result, Mapping) else {}
        outputs = result.get("outputs")
        return {
            **content,
            "verb": request.get("verb"),
            "values": request.get("values"),
            "recipe": request.get("path") or request.get("text"),
            "outputs": outputs if isinstance(outputs, list) else [],
        }


class History:
    """The jobs in a folder.

    Args:
        store: the folder; it is made when the first job is written.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self.server = uuid.uuid4().hex[:12]
        self.jobs: dict[str, Job] = {}
        self._held = ExitStack()
        self._holds = False
        self._damaged: set[str] = set()

    def refresh(self) -> None:
        """Read what other servers have written, and mark what was lost with its server."""
        there = set(self._names())
        for name in [n for n, job in self.jobs.items() if not self._is_own(job)]:
            if name not in there:
                del self.jobs[name]
        for name in there - self._damaged:
            known = self.jobs.get(name)
            if known is None or (known.is_active and not self._is_own(known)):
                self._read(name)
        for server in {job.server for job in self.jobs.values() if job.is_active} - {self.server}:
            if not self._lives(server):
                self._lose(server)

    def write(self, job: Job) -> None:
        """Remember a job as it is now.

        Raises:
            FileError: if the folder cannot be written.
        """
        self._hold()
        self.jobs[job.id] = job
        text = json.dumps(asdict(job), ensure_ascii=True, default=str)
        write_bytes(self._path(job.id), text.encode(), force=True)

    def forget(self, job: Job) -> None:
        """Take a job off the history."""
        self.jobs.pop(job.id, None)
        self._path(job.id).unlink(missing_ok=True)

    def alone(self) -> AbstractContextManager[None]:
        """Return a context in which no other server puts a job in its queue."""
        return locked(self._store / "queue", _PATIENCE)

    def close(self) -> None:
        """Let go of the lock: what is written as running is lost from then on."""
        self._held.close()
        if self._holds:
            self._clean(self.server)

    def _hold(self) -> None:
        if not self._holds:
            self._store.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(locked(self._mark(self.server), 0))
            self._holds = True

    def _is_own(self, job: Job) -> bool:
        return job.server == self.server

    def _lives(self, server: str) -> bool:
        """Return whether a server holds its lock still."""
        try:
            with locked(self._mark(server), 0):
                return False
        except FileError:
            return True

    def _lose(self, server: str) -> None:
        for job in self.jobs.values():
            if job.server == server and job.is_active:
                job.lose()
                self.write(job)
        self._clean(server)

    def _clean(self, server: str) -> None:
        mark = self._mark(server)
        with suppress(OSError):
            mark.with_name(f"{mark.name}.lock").unlink(missing_ok=True)

    def _mark(self, server: str) -> Path:
        return self._store / f"{server}.server"

    def _path(self, number: str) -> Path:
        return self._store / f"{number}.json"

    def _names(self) -> Iterator[str]:
        """Yield the numbers of the jobs that were written; the oldest of too many are deleted."""
        if not self._store.is_dir():
            return
        paths = list(self._store.glob("*.json"))
        if len(paths) > _MOST:
            with suppress(OSError):
                paths.sort(key=lambda path: -path.stat().st_mtime)
                for path in paths[_MOST:]:
                    path.unlink(missing_ok=True)
        yield from (path.stem for path in paths[:_MOST])

    def _read(self, name: str) -> None:
        try:
            content = read_values(self._path(name))
            job = Job(**{one: content[one] for one in _FIELDS & content.keys()})
            if job.id != name or not _is_whole(job):
                raise ValueError
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, AttributeError):  # damaged by something else
            self._damaged.add(name)
            return
        self.jobs[name] = job


_FIELDS = {one.name for one in fields(Job)}


def _is_whole(job: Job) -> bool:
    """Return whether a job that was read has values of the types that are relied on."""
    texts = (job.title, job.command, job.key, job.server, job.state)
    return (
        all(isinstance(one, str) for one in texts)
        and isinstance(job.request, dict)
        and isinstance(job.events, list)
        and isinstance(job.created, (int, float))
        and isinstance(job.folder, str | None)
    )
