"""Forms, and actions: what they would write and where, said as YAML and as a command line."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loramerge.library.paths import below
from loramerge.page.actions import Action, action_of
from loramerge.page.forms import forms
from loramerge.page.living import Replaced
from loramerge.page.processes import WorkerEnded, WorkerError
from loramerge.page.server import Page, answer, body_of, page_of

__all__ = ["ROUTES"]


async def _verbs(request: Request) -> Response:
    return answer(await asyncio.to_thread(forms))


async def _action(request: Request) -> Response:
    content, page = await body_of(request), page_of(request)
    verb, values = content.get("verb"), content.get("values", {})
    action = await asyncio.to_thread(action_of, verb, values, page.places)
    try:
        output = action.output or await _chosen(action, page, str(content.get("latest") or ""))
    except Replaced:
        return answer({"replaced": True})

    def said() -> dict[str, object]:
        return {
            "yaml": action.recipe(page.places.folder, output),
            "command": action.command,
            "output": output,
            "exists": output is not None and below(page.places.folder, output).exists(),
        }

    return answer(await asyncio.to_thread(said))


async def _chosen(action: Action, page: Page, key: str) -> str | None:
    """Return the path that a verb chooses for its result; None if it chooses none.

    Raises:
        Replaced: by a newer request with the same key.
    """
    if action.verb.output_path is None:
        return None
    asked = {"do": "output", "verb": action.verb.name, "values": dict(action.values)}
    try:
        found = await page.live.ask(asked, key)
    except (WorkerError, WorkerEnded):
        return None  # the run says why
    return None if found is None else str(found)


ROUTES = [
    Route("/api/verbs", _verbs),
    Route("/api/action", _action, methods=["POST"]),
]
