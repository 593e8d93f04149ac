"""Forms, and actions: what they would write, said as YAML and as a command line."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loramerge.library.paths import below
from loramerge.page.actions import action_of
from loramerge.page.forms import forms
from loramerge.page.server import answer, body_of, page_of

__all__ = ["ROUTES"]


async def _verbs(request: Request) -> Response:
    return answer(await asyncio.to_thread(forms))


async def _action(request: Request) -> Response:
    content, page = await body_of(request), page_of(request)

    def said() -> dict[str, object]:
        action = action_of(content.get("verb"), content.get("values", {}), page.places)
        output = action.output
        return {
            "yaml": action.recipe(page.places.folder),
            "command": action.command,
            "output": output,
            "exists": output is not None and below(page.places.folder, output).exists(),
        }

    return answer(await asyncio.to_thread(said))


ROUTES = [
    Route("/api/verbs", _verbs),
    Route("/api/action", _action, methods=["POST"]),
]
