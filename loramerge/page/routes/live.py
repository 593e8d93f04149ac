"""What is computed while one looks: plans, previews, curves, reports. The newest request wins."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loramerge.errors import UsageError
from loramerge.page.actions import action_of
from loramerge.page.server import Page, answer, body_of, page_of

__all__ = ["ROUTES"]

# kind → verb, where it has one of its own
_KINDS: Mapping[str, str | None] = {
    "plan": None,
    "preview": "preview",
    "curve": "resize",
    "report": None,
}


async def _live(request: Request) -> Response:
    content, page = await body_of(request), page_of(request)
    kind = str(content.get("kind"))
    if kind not in _KINDS:
        raise UsageError(f"{kind!r} cannot be asked for", expected=", ".join(_KINDS))
    verb = _KINDS[kind] or content.get("verb")
    action = await asyncio.to_thread(action_of, verb, content.get("values", {}), page.places)
    asked = {
        "do": kind,
        "verb": action.verb.name,
        "values": dict(action.values),
        "relations": bool(content.get("relations")),
    }
    key = str(content.get("latest") or "")
    turn = _turn(page, key) if key else lambda: True
    async with _lock(page):  # the worker takes one at a time; those that were replaced never start
        if not turn():
            return answer({"replaced": True}, 409)
        found = await page.live.ask(asked)
    return answer(_kept(found, page))


def _turn(page: Page, key: str) -> Callable[[], bool]:
    """Return a function that says whether this is still the newest request with its key."""
    mine = object()
    page.newest[key] = mine
    return lambda: page.newest.get(key) is mine


def _lock(page: Page) -> asyncio.Lock:
    return page.turn


def _kept(found: Any, page: Page) -> Any:
    """Return an answer with numbers in place of the pictures and pages in it, which are kept."""
    if isinstance(found, dict):
        if found.keys() == {"kind", "base64"}:
            return page.keep(base64.b64decode(found["base64"]), found["kind"])
        return {name: _kept(value, page) for name, value in found.items()}
    return [_kept(value, page) for value in found] if isinstance(found, list) else found


ROUTES = [Route("/api/live", _live, methods=["POST"])]
