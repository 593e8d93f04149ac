"""Plans, previews, curves and reports, computed while one looks. The newest request wins."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loramerge.errors import UsageError
from loramerge.page.actions import Action, action_of
from loramerge.page.living import Replaced
from loramerge.page.server import Page, answer, body_of, page_of

__all__ = ["ROUTES"]

# kind → verb, where it has one of its own
_KINDS: Mapping[str, str | None] = {
    "plan": None,
    "preview": "preview",
    "curve": "resize",
    "report": None,
}
_UNCHECKED = ("plan", "curve")  # a plan says what is refused; a curve needs less than `resize`


async def _live(request: Request) -> Response:
    content, page = await body_of(request), page_of(request)
    kind = str(content.get("kind"))
    if kind not in _KINDS:
        raise UsageError(f"{kind!r} cannot be asked for", expected=", ".join(_KINDS))
    asked = await asyncio.to_thread(_asked, kind, content, page)
    try:
        found = await page.live.ask(asked, str(content.get("latest") or ""))
    except Replaced:
        return answer({"replaced": True})
    return answer(_kept(found, page))


def _asked(kind: str, content: Mapping[str, Any], page: Page) -> dict[str, Any]:
    """Return the request to a worker.

    Raises:
        UsageError: if values do not fit, or name what the page may not use.
    """
    verb, values = _KINDS[kind] or content.get("verb"), content.get("values", {})
    of = content.get("of") if kind == "preview" else None
    whole = kind not in _UNCHECKED and of is None  # the result of an action stands for the adapters
    action = action_of(verb, values, page.places, whole=whole)
    asked = {"do": kind, **_said(action), "relations": bool(content.get("relations"))}
    if of is None:
        return asked
    if not isinstance(of, Mapping):
        raise UsageError("what is to be shown is not an action")
    return asked | {"of": _said(action_of(of.get("verb"), of.get("values", {}), page.places))}


def _said(action: Action) -> dict[str, Any]:
    return {"verb": action.verb.name, "values": dict(action.values)}


def _kept(found: Any, page: Page) -> Any:
    """Return an answer with numbers in place of the pictures and pages in it, which are kept."""
    if isinstance(found, dict):
        if found.keys() == {"kind", "base64"}:
            return page.keep(base64.b64decode(found["base64"]), found["kind"])
        return {name: _kept(value, page) for name, value in found.items()}
    return [_kept(value, page) for value in found] if isinstance(found, list) else found


ROUTES = [Route("/api/live", _live, methods=["POST"])]
