"""Jobs: the queue, its history, what a training run has written, and the stream of events."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from loramerge.errors import UsageError
from loramerge.page.actions import Action, action_of
from loramerge.page.places import Places
from loramerge.page.routes.recipes import recipe_request
from loramerge.page.server import Page, answer, body_of, page_of
from loramerge.page.training import run_folder_of, training
from loramerge.page.worker import plain

__all__ = ["ROUTES"]

_SILENCE = 15.0  # seconds after which a comment shows that the server is there
_CONTINUED = ("stopped", "lost", "cancelled", "failed")


@dataclass(frozen=True)
class _New:
    """A job to start.

    Args:
        key: of what it does; see `history.Job`.
        folder: of a training run.
    """

    title: str
    request: Mapping[str, Any]
    command: str
    key: str
    folder: str | None = None


async def _all(request: Request) -> Response:
    return answer([job.json() for job in page_of(request).jobs.all()])


async def _add(request: Request) -> Response:
    content, page = await body_of(request), page_of(request)
    return await _start(content, page)


async def _again(request: Request) -> Response:
    """Run what a job did once more; a training run that was stopped goes on."""
    page = page_of(request)
    job = page.jobs.get(request.path_params["id"])
    if job.is_active:
        raise UsageError("this job has not ended yet")
    asked = job.request
    if asked.get("do") == "recipe":
        return await _start(asked, page)
    if asked.get("do") != "run":  # of the page's own, such as a scan
        same, already = page.jobs.add(job.title, asked, job.command, job.key)
        return answer({"id": same.id, "already": already})
    values = dict(asked["values"])
    if asked["verb"] == "train" and job.state in _CONTINUED:
        values["resume"] = True
    return await _start({"verb": asked["verb"], "values": values}, page)


async def _start(content: Mapping[str, Any], page: Page) -> Response:
    new = await asyncio.to_thread(_new, content, page.places)
    job, already = page.jobs.add(new.title, new.request, new.command, new.key, new.folder)
    return answer({"id": job.id, "already": already})


def _new(content: Mapping[str, Any], places: Places) -> _New:
    """Return the job that a request describes: an action, or a recipe by its path or text.

    Raises:
        UsageError: if there is none, or the page may not use what it names.
    """
    if "verb" in content:
        return _of_action(action_of(content["verb"], content.get("values", {}), places), places)
    return _of_recipe(_spelled(content), places)


def _of_action(action: Action, places: Places) -> _New:
    verb = action.verb.name
    title = f"{verb} {action.output or ''}".strip()
    asked = {"do": "run", "verb": verb, "values": dict(action.values)}
    return _New(title, asked, action.command, action.command, run_folder_of(action, places))


def _spelled(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request with `path` or `text` for `recipe`, which is either: a text has several lines."""
    found = dict(content)
    stated = found.pop("recipe", None)
    if stated is not None:
        found["text" if isinstance(stated, str) and "\n" in stated else "path"] = stated
    return found


def _of_recipe(content: Mapping[str, Any], places: Places) -> _New:
    asked = recipe_request(content, places)
    force = content.get("force") is True
    asked |= {"run": True, "force": force}
    path = asked["path"]
    key = json.dumps(asked, sort_keys=True, default=str)
    if path is None:
        return _New("recipe", asked, "", key)
    words = ["loramerge", "run", path]
    for name, value in asked["set"].items():
        text = value if isinstance(value, str) else json.dumps(plain(value))
        words += ["--set", f"{name}={text}"]
    return _New(f"run {path}", asked, shlex.join([*words, *["--force"] * force]), key)


async def _stop(request: Request) -> Response:
    return answer(page_of(request).jobs.stop(request.path_params["id"]).json())


async def _forget(request: Request) -> Response:
    page, number = page_of(request), request.path_params["id"]
    page.jobs.forget(number)
    page.tell("job", {"id": number, "deleted": True})
    return answer({})


async def _training(request: Request) -> Response:
    page = page_of(request)
    job = page.jobs.get(request.path_params["id"])
    found = await asyncio.to_thread(training, job, page.places)
    sheet = None if found.samples is None else page.keep(found.samples, "image/png")
    return answer({**found.json(), "samples": sheet})


async def _events(request: Request) -> Response:
    page = page_of(request)
    queue = page.listener()

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
                yield f"event: {event}\ndata: {json.dumps(plain(content), default=str)}\n\n"
        finally:
            page.listeners.discard(queue)

    return StreamingResponse(stream(), media_type="text/event-stream")


ROUTES = [
    Route("/api/jobs", _all, methods=["GET"]),
    Route("/api/jobs", _add, methods=["POST"]),
    Route("/api/jobs/{id}/stop", _stop, methods=["POST"]),
    Route("/api/jobs/{id}/again", _again, methods=["POST"]),
    Route("/api/jobs/{id}/training", _training, methods=["GET"]),
    Route("/api/jobs/{id}", _forget, methods=["DELETE"]),
    Route("/api/events", _events, methods=["GET"]),
]
