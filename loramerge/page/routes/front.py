"""The page itself, what it should know first, and the pictures and reports that were made for it."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from loramerge import __version__
from loramerge.algebra.blocks import PRESETS, VECTORS
from loramerge.errors import FileError, NotFound
from loramerge.library.index import has_index
from loramerge.library.registry import load_registry
from loramerge.library.shipped import SHIPPED_ADAPTERS, SHIPPED_BASES
from loramerge.page.families import families
from loramerge.page.forms import operators
from loramerge.page.places import Places
from loramerge.page.server import answer, page_of
from loramerge.recipe.shipped import shipped_recipes
from loramerge.verbs import known_verbs

__all__ = ["ROUTES"]

_WARM_AFTER = 1.0  # seconds that the page has for itself first
_FRONT = Path(__file__).parent.parent / "static" / "index.html"
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
)


async def _front(request: Request) -> Response:
    return FileResponse(_FRONT)


async def _about(request: Request) -> Response:
    page = page_of(request)
    facts = await asyncio.to_thread(_facts, page.places)
    if facts["drawing"]:
        page.live.warm(_WARM_AFTER)
    return answer(facts)


def _facts(places: Places) -> dict[str, Any]:
    registered = [
        {"name": name, "path": path, "reference": name, "shipped": False}
        for name, path in load_registry().bases.items()
    ]
    shipped = [{"name": n, "path": n, "reference": n, "shipped": True} for n in SHIPPED_BASES]
    return {
        "version": __version__,
        "folder": str(places.folder),
        "places": [str(place) for place in places.roots()],
        "bases": [*shipped, *registered],
        "adapters": [{"name": n, "reference": n, "shipped": True} for n in SHIPPED_ADAPTERS],
        "recipes": _recipes(),
        "operators": operators(),
        "families": families(),
        "presets": {name: list(values) for name, values in PRESETS.items()},
        "vectors": {str(length): list(names) for length, names in VECTORS.items()},
        "indexed": has_index(),
        "verbs": list(known_verbs()),
        "drawing": find_spec("torch") is not None and find_spec("diffusers") is not None,
    }


def _recipes() -> list[dict[str, str]]:
    """Return the recipes that come with loramerge, as texts: their folder is not written to."""
    try:
        found = shipped_recipes()
    except FileError:
        return []
    return [{"name": one.name, "summary": one.title, "text": one.text} for one in found]


async def _picture(request: Request) -> Response:
    return _kept(request, "image/png")


async def _report(request: Request) -> Response:
    found = _kept(request, "text/html; charset=utf-8")
    found.headers["content-security-policy"] = _PAGE_POLICY
    return found


def _kept(request: Request, kind: str) -> Response:
    found = page_of(request).kept.get(request.path_params["id"])
    if found is None or found[1] != kind:
        raise NotFound("this is no longer kept", hint="ask for it again")
    return Response(found[0], media_type=kind, headers={"cache-control": "private, max-age=3600"})


ROUTES = [
    Route("/", _front),
    Route("/api/about", _about),
    Route("/picture/{id}.png", _picture),
    Route("/report/{id}", _report),
]
