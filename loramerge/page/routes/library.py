"""The library as cards: search, pictures, one's own words, folders, and its index."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loramerge.errors import LoramergeError, NotFound, UsageError
from loramerge.library.index import open_index
from loramerge.library.overview import Glance
from loramerge.library.registry import changed_registry, load_registry
from loramerge.page.cards import cards, details, preview_of
from loramerge.page.places import Places
from loramerge.page.server import Page, answer, body_of, page_of
from loramerge.page.shelf import Query
from loramerge.page.thumbnails import thumbnail

__all__ = ["ROUTES"]

_LIMIT, _MOST = 60, 500  # cards of one answer
_AT_ONCE = 8  # files whose headers are read before anything else is done
_LONGEST = 20_000  # characters of a note
_TAGS = 200


async def _cards(request: Request) -> Response:
    page, asked = page_of(request), request.query_params
    copies = await _copies(page) if _is_on(asked.get("duplicates")) else None
    query = _query(asked, copies)
    first, most = _whole(asked, "offset", 0), min(_MOST, _whole(asked, "limit", _LIMIT))

    def said() -> tuple[dict[str, Any], list[Glance]]:
        found = page.shelf.find(query)
        shown = list(found.all[first : first + most])
        every = cards(shown, page.shelf, page.places)
        if copies is not None:
            every = [{**one, "group": copies.get(int(one["id"]))} for one in every]
        content = {
            "total": len(found.all),
            "cards": every,
            "families": _counted(found.families),
            "kinds": _counted(found.kinds),
            "indexed": page.shelf.has_index,
        }
        return content, page.shelf.undescribed(shown)

    content, new = await asyncio.to_thread(said)
    page.background(_keep_up(page, new))
    return answer(content)


def _query(asked: QueryParams, copies: Mapping[int, int] | None) -> Query:
    descending = asked.get("descending")
    return Query(
        words=asked.get("words", "")[:1000],
        family=asked.get("family", ""),
        kind=asked.get("kind", ""),
        sort=asked.get("sort", ""),
        descending=None if not descending else _is_on(descending),
        copies=copies,
    )


def _is_on(text: str | None) -> bool:
    return (text or "") not in ("", "0", "false")


def _whole(asked: QueryParams, name: str, default: int) -> int:
    text = asked.get(name) or str(default)
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UsageError(f"{name} is not a whole number", found=text[:40])
    return int(text)


def _counted(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return [{"name": name, "count": count} for name, count in ordered]


async def _copies(page: Page) -> Mapping[int, int]:
    """Return content → number of the group of its copies, which are compared if that is not known."""
    known = await asyncio.to_thread(page.shelf.copies)
    if known is not None or not page.shelf.has_index:
        return known or {}
    found = await page.live.ask({"do": "duplicates"}, told_as="duplicates")
    return page.shelf.learn_copies([one["contents"] for one in found["groups"]])


async def _keep_up(page: Page, new: Sequence[Glance]) -> None:
    """Look for new files, read the headers of those shown without, and tell of what changed."""
    changed = await asyncio.to_thread(page.shelf.look_again)
    for start in range(0, len(new), _AT_ONCE):
        several = page.shelf.undescribed(new[start : start + _AT_ONCE])
        if not several:
            continue
        try:
            found = await page.live.ask({"do": "describe", "paths": [one.path for one in several]})
        except LoramergeError:
            break  # they stay without
        for one, facts in zip(several, found, strict=True):
            page.shelf.learn(one, facts)
        changed = True
    if changed:
        page.tell("library", {})


async def _one(request: Request) -> Response:
    page = page_of(request)
    found = await asyncio.to_thread(page.shelf.get, request.path_params["id"])
    return answer(await asyncio.to_thread(details, found, page.shelf, page.places))


async def _picture(request: Request) -> Response:
    page = page_of(request)

    def made() -> tuple[bytes, str]:
        path = preview_of(page.shelf.get(request.path_params["id"]))
        if path is None:
            raise NotFound("there is no picture beside this file")
        return thumbnail(page.places.allowed(path))

    data, kind = await asyncio.to_thread(made)
    return Response(data, media_type=kind, headers={"cache-control": "private, max-age=600"})


async def _keep_words(request: Request) -> Response:
    content, page = await body_of(request), page_of(request)
    changes = _changes(content)
    one = await asyncio.to_thread(page.shelf.get, request.path_params["id"])
    number = one.content
    if number is None:
        await asyncio.to_thread(page.places.allowed, one.path)
        number = await page.live.ask({"do": "enter", "path": one.path})

    def kept() -> dict[str, Any]:
        with open_index(create=False) as index, index.writing():
            facts = index.facts(int(number or 0))
            if facts is None:
                raise NotFound("the index does not know this file any more", hint="scan again")
            index.put_own(facts["identity"], replace(index.own(facts["identity"]), **changes))
        return details(page.shelf.get(str(number)), page.shelf, page.places)

    found = await asyncio.to_thread(kept)
    page.tell("library", {"id": str(number)})
    return answer(found)


def _changes(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of one's own words that a request changes.

    Raises:
        UsageError: for a value that none of them can have.
    """
    if strange := [name for name in content if name not in _WORDS]:
        raise UsageError(f"{strange[0]!r} cannot be kept", expected=", ".join(_WORDS))
    return {name: _WORDS[name](value) for name, value in content.items()}


def _tags(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise UsageError("tags are a list of texts")
    known: dict[str, str] = {}
    for one in (" ".join(text.split())[:_TAGS] for text in value):
        if one:
            known.setdefault(one.casefold(), one)
    return tuple(known.values())[:_TAGS]


def _note(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise UsageError("a note is a text")
    return (value or "").strip()[:_LONGEST] or None


def _rating(value: Any) -> int | None:
    if value is not None and (type(value) is not int or not 0 <= value <= 5):
        raise UsageError("a rating is a whole number from 0 to 5", found=str(value)[:40])
    return value or None


_WORDS = {"tags": _tags, "note": _note, "rating": _rating}


async def _add(request: Request) -> Response:
    content, page = await body_of(request), page_of(request)

    def added() -> dict[str, Any]:
        folder = page.places.allowed(_text(content.get("folder")))
        with changed_registry() as registry:
            new = registry.add_folder(folder)
        page.shelf.look_soon()
        return {"folder": str(folder), "added": new}

    found = await asyncio.to_thread(added)
    page.tell("library", {})
    return answer(found)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError("no folder is named")
    return value


async def _scan(request: Request) -> Response:
    content, page = await body_of(request), page_of(request)
    if content.keys() - {"folders"}:
        raise UsageError("a scan takes folders, and nothing else")
    folders = await asyncio.to_thread(_folders, content.get("folders"), page.places)
    command = shlex.join(["loramerge", "library", "scan", *folders])
    job, already = page.jobs.add("library scan", {"do": "scan", "folders": folders}, command)
    return answer({"id": job.id, "already": already})


def _folders(given: Any, places: Places) -> list[str]:
    """Return the folders to index: those given, else the library's, else the current one."""
    if given:
        if not isinstance(given, list):
            raise UsageError("folders are a list of texts")
        return [str(places.allowed(_text(one))) for one in given]
    known = [one.path for one in load_registry().folders if one.holds != "bases"]
    opened = [str(place) for place in places.opened if place.is_dir()]
    return known + [one for one in opened if one not in known] or [str(places.folder)]


ROUTES = [
    Route("/api/library", _cards),
    Route("/api/library/add", _add, methods=["POST"]),
    Route("/api/library/scan", _scan, methods=["POST"]),
    Route("/api/library/{id}", _one, methods=["GET"]),
    Route("/api/library/{id}", _keep_words, methods=["POST"]),
    Route("/picture/library/{id}", _picture),
]
