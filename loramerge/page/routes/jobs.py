"""Jobs: the queue, its history, and the stream of events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from loramerge.page.actions import action_of
from loramerge.page.server import answer, body_of, page_of

__all__ = ["ROUTES"]

_SILENCE = 15.0  # seconds after which a comment shows that the server is there


async def _all(request: Request) -> Response:
    return answer([job.json() for job in page_of(request).jobs.all()])


async def _add(request: Request) -> Response:
    content, page = await body_of(request), page_of(request)
    action = await asyncio.to_thread(
        action_of, content.get("verb"), content.get("values", {}), page.places
    )
    title = f"{action.verb.name} {action.output or ''}".strip()
    asked = {"do": "run", "verb": action.verb.name, "values": dict(action.values)}
    job, already = page.jobs.add(title, asked, action.command)
    return answer({"id": job.id, "already": already})


async def _stop(request: Request) -> Response:
    return answer(page_of(request).jobs.stop(request.path_params["id"]).json())


async def _forget(request: Request) -> Response:
    page_of(request).jobs.forget(request.path_params["id"])
    return answer({})


async def _events(request: Request) -> Response:
    page = page_of(request)
    queue: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    page.listeners.add(queue)

    async def stream() -> AsyncIterator[str]:
        try:
            yield ": here\n\n"
            while True:
                try:
                    event, content = await asyncio.wait_for(queue.get(), _SILENCE)
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                if event == "end":
                    return
                yield f"event: {event}\ndata: {json.dumps(content, default=str)}\n\n"
        finally:
            page.listeners.discard(queue)

    return StreamingResponse(stream(), media_type="text/event-stream")


ROUTES = [
    Route("/api/jobs", _all, methods=["GET"]),
    Route("/api/jobs", _add, methods=["POST"]),
    Route("/api/jobs/{id}/stop", _stop, methods=["POST"]),
    Route("/api/jobs/{id}", _forget, methods=["DELETE"]),
    Route("/api/events", _events),
]
