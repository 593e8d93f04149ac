"""Recipes: what is in one, its graph, what is up to date, and saving its text."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loramerge.errors import UsageError
from loramerge.files.writer import write_bytes
from loramerge.page.places import Places
from loramerge.page.requests import text_in
from loramerge.page.server import answer, body_of, page_of

__all__ = ["ROUTES", "recipe_request"]

_SUFFIXES = (".yaml", ".yml")
_LONGEST = 1 << 20  # bytes, as of a recipe that is read


def recipe_request(content: Mapping[str, Any], places: Places) -> dict[str, Any]:
    """Return what a worker is asked about the recipe in a request's `path`, or in its `text`.

    Raises:
        UsageError: if it has neither or both, if the page may not read the path, or if `set` is not a
            mapping.
    """
    path, text = text_in(content, "path"), text_in(content, "text")
    if (path is None) == (text is None):
        raise UsageError("a recipe is a path or a text", expected="one of path and text")
    if path is not None:
        places.allowed(path)
    stated = content.get("set", {})
    if not isinstance(stated, Mapping):
        raise UsageError("set is not a mapping of variables to values")
    return {"do": "recipe", "path": path, "text": text, "set": dict(stated)}


async def _open(request: Request) -> Response:
    content, page = await body_of(request), page_of(request)
    asked = await asyncio.to_thread(recipe_request, content, page.places)
    beside = text_in(content, "beside")
    if beside and asked["path"] is None:  # where a changed text will be saved
        await asyncio.to_thread(page.places.allowed, beside)
        asked["beside"] = beside
    return answer(await page.live.ask(asked))


async def _save(request: Request) -> Response:
    content, places = await body_of(request), page_of(request).places

    def save() -> dict[str, Any]:
        name, text = text_in(content, "path"), text_in(content, "text")
        if not name or text is None:
            raise UsageError("a path and a text are needed")
        path = places.writable(name)
        if path.suffix.lower() not in _SUFFIXES:
            raise UsageError(
                "the name of a recipe ends in .yaml", found=path.name, hint=f"{path.name}.yaml"
            )
        data = text.encode("utf-8", "replace")
        if len(data) > _LONGEST:
            raise UsageError("this text is too long to be a recipe")
        write_bytes(path, data, force=content.get("force") is True)
        return {"path": str(path), "reference": places.reference(Path(path))}

    return answer(await asyncio.to_thread(save))


ROUTES = [
    Route("/api/recipe", _open, methods=["POST"]),
    Route("/api/recipe/save", _save, methods=["POST"]),
]
