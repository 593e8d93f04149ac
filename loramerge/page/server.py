"""The server of the page: routes, and what they share."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from loramerge.errors import LoramergeError, UsageError
from loramerge.files.json_values import values_in
from loramerge.library.registry import home
from loramerge.page.guard import Guard
from loramerge.page.jobs import Job, Jobs
from loramerge.page.places import Places
from loramerge.page.processes import WorkerError, WorkerProcess
from loramerge.page.worker import error_json, plain

__all__ = ["Page", "answer", "app_of", "body_of", "page_of"]

_STATIC = Path(__file__).parent / "static"
_LARGEST = 4 << 20  # bytes of a request's JSON


@dataclass
class Page:
    """What the routes share.

    Args:
        live: the worker that stays.
        listeners: a queue for each page that is open.
        kept: number → bytes and type of pictures and pages that were made, the newest last.
        newest: key → the newest of the requests that replace each other.
        turn: held by the request that the live worker answers.
    """

    places: Places
    live: WorkerProcess
    jobs: Jobs
    listeners: set[asyncio.Queue[tuple[str, Any]]] = field(default_factory=set)
    kept: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    newest: dict[str, object] = field(default_factory=dict)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def tell(self, event: str, content: Any) -> None:
        """Tell all open pages of something."""
        for queue in self.listeners:
            queue.put_nowait((event, content))

    def keep(self, data: bytes, kind: str) -> str:
        """Keep a picture or a page for a while, and return its number."""
        number = hashlib.sha256(data).hexdigest()[:24]
        self.kept.pop(number, None)
        self.kept[number] = (data, kind)
        while sum(len(one) for one, _ in self.kept.values()) > _KEPT and len(self.kept) > 1:
            del self.kept[next(iter(self.kept))]
        return number


_KEPT = 64 << 20  # bytes


def page_of(request: Request) -> Page:
    """Return what the routes share."""
    found: Page = request.app.state.page
    return found


async def body_of(request: Request) -> dict[str, Any]:
    """Return the JSON object of a request.

    Raises:
        UsageError: if it is none, or too large.
    """
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > _LARGEST:
            raise UsageError("the request is too large")
    try:
        found = values_in(data.decode() or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError("the request is not a JSON object")
    return found


def answer(content: Any, status: int = 200) -> JSONResponse:
    """Return a JSON answer; NaN and infinity become null."""
    return JSONResponse(plain(content), status)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, LoramergeError)
    content = error.content if isinstance(error, WorkerError) else error_json(error)
    status = 500 if content["exit_code"] == 70 else 400
    return answer({"error": content}, status)


def app_of(
    places: Places, hosts: Iterable[str], token: str, *, store: Path | None = None
) -> Starlette:
    """Return the application.

    Args:
        hosts: what a browser may call it, with the port.
        token: that each request needs.
        store: folder that remembers jobs; None is one in `$LORAMERGE_HOME`.
    """
    from loramerge.page.routes import routes

    name = hashlib.sha256(str(places.folder).encode()).hexdigest()[:16]
    page: Page

    def told(job: Job) -> None:
        page.tell("job", job.json())

    place = store or home() / "page" / name
    page = Page(places, WorkerProcess(places.folder), Jobs(places.folder, place, told))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        running = asyncio.create_task(page.jobs.run())
        try:
            yield
        finally:
            running.cancel()
            page.tell("end", None)
            await asyncio.to_thread(page.jobs.close)
            await asyncio.to_thread(page.live.end, 1.0)

    app = Starlette(
        routes=[*routes(), Mount("/static", StaticFiles(directory=_STATIC))],
        middleware=[Middleware(Guard, hosts=tuple(hosts), token=token)],
        exception_handlers={LoramergeError: _refused},
        lifespan=lifespan,
    )
    app.state.page = page
    return app
