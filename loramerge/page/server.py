"""The server of the page: routes, and what they share."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import AsyncIterator, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from loramerge.errors import LoramergeError, NotFound
from loramerge.library.registry import home
from loramerge.page.guard import Guard
from loramerge.page.jobs import Job, Jobs
from loramerge.page.living import Live
from loramerge.page.places import Places
from loramerge.page.processes import WorkerError
from loramerge.page.requests import body_of
from loramerge.page.shelf import Shelf
from loramerge.page.worker import error_json, plain

__all__ = ["Page", "answer", "app_of", "body_of", "page_of"]

_STATIC = Path(__file__).parent / "static"
_BEHIND = 1000  # events that a page may have to read yet


@dataclass
class Page:
    """The things that the routes share.

    Args:
        live: the workers that stay.
        shelf: the adapters that the page shows.
        working: what goes on after an answer.
        listeners: a queue for each page that is open.
        kept: number → bytes and type of pictures and pages that were made, the newest last.
    """

    places: Places
    live: Live
    shelf: Shelf
    jobs: Jobs
    working: set[asyncio.Task[None]] = field(default_factory=set)
    listeners: set[asyncio.Queue[tuple[str, Any]]] = field(default_factory=set)
    kept: dict[str, tuple[bytes, str]] = field(default_factory=dict)

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something after the answer."""
        task = asyncio.create_task(work)
        self.working.add(task)
        task.add_done_callback(self.working.discard)

    def tell(self, event: str, content: Any) -> None:
        """Tell all open pages of something; one that does not read is let go, and asks again."""
        for queue in list(self.listeners):
            if queue.full():
                self.listeners.discard(queue)
                queue.get_nowait()
                queue.put_nowait(("end", None))
            else:
                queue.put_nowait((event, content))

    def listener(self) -> asyncio.Queue[tuple[str, Any]]:
        """Return a queue that gets what pages are told, until it is taken off `listeners`."""
        found: asyncio.Queue[tuple[str, Any]] = asyncio.Queue(_BEHIND)
        self.listeners.add(found)
        return found

    def end(self) -> None:
        """End the streams of all pages, and interrupt what runs; the processes end by themselves."""
        self.tell("end", None)
        self.jobs.let_go()
        self.live.let_go()

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


class _Json(JSONResponse):
    """JSON in ASCII: names of files may have bytes that no other encoding takes."""

    def render(self, content: Any) -> bytes:
        """Return the bytes."""
        return json.dumps(content, allow_nan=False, default=str).encode("ascii")


def answer(content: Any, status: int = 200) -> JSONResponse:
    """Return a JSON answer; NaN and infinity become null."""
    return _Json(plain(content), status)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, LoramergeError)
    content = error.content if isinstance(error, WorkerError) else error_json(error)
    status = 404 if isinstance(error, NotFound) else 500 if content["exit_code"] == 70 else 400
    return answer({"error": content}, status)


async def _bug(request: Request, error: Exception) -> Response:
    text = f"bug: {type(error).__name__}"
    hint = "set LORAMERGE_TRACEBACK=1, start it again, and report what it prints"
    return answer({"error": {"text": text, "hint": hint, "exit_code": 70}}, 500)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {404: "there is no such page", 405: "this cannot be done here"}
    said = text.get(error.status_code, error.detail)
    found = answer({"error": {"text": said, "hint": None, "exit_code": 2}}, error.status_code)
    found.headers.update(error.headers or {})
    return found


def app_of(
    places: Places, hosts: Iterable[str], token: str, *, store: Path | None = None
) -> Starlette:
    """Return the application; its `state.page` is what the routes share.

    Args:
        hosts: what a browser may call it, with the port.
        token: that each request needs.
        store: folder that remembers jobs; None is one in `$LORAMERGE_HOME`.
    """
    from loramerge.page.routes import routes

    name = hashlib.sha256(os.fsencode(places.folder)).hexdigest()[:16]
    page: Page

    def told(job: Job, only_progress: bool) -> None:
        part = {"id": job.id, "state": job.state, "progress": job.progress}
        page.tell("job", part if only_progress else job.json())
        if job.ended is not None:  # it may have written an adapter, or indexed some
            page.shelf.look_soon()
            page.tell("library", {})

    place = store or home() / "page" / name

    def tell(event: str, content: Any) -> None:
        page.tell(event, content)

    page = Page(places, Live(places, tell), Shelf(places), Jobs(places, place, told))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        running = asyncio.create_task(page.jobs.run())
        try:
            yield
        finally:
            page.end()
            await asyncio.to_thread(page.live.wait, _PATIENCE / 2)
            await page.jobs.ended(_PATIENCE)
            running.cancel()
            page.jobs.close()

    app = _Guarded(
        hosts,
        token,
        routes=[*routes(), Mount("/static", StaticFiles(directory=_STATIC))],
        exception_handlers={LoramergeError: _refused, HTTPException: _http, Exception: _bug},
        lifespan=lifespan,
    )
    app.state.page = page
    return app


_PATIENCE = 1.0  # seconds that processes have at the end of the server; later they end alone


class _Guarded(Starlette):
    """An application inside of a guard: even its own errors get the guard's headers."""

    def __init__(self, hosts: Iterable[str], token: str, **settings: Any) -> None:
        super().__init__(**settings)
        self._guard = Guard(super().__call__, hosts, token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._guard(scope, receive, send)
