"""The bodies of requests: one JSON object of a bounded size and depth, or the parts of a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.requests import Request

from loramerge.errors import UsageError
from loramerge.files.json_values import values_in

__all__ = ["body_of", "parts_of", "text_in"]

_LARGEST = 4 << 20  # bytes of a request's JSON
_DEEPEST = 40  # objects and lists in each other
_SILENCE = 30.0  # seconds that a client may send nothing


async def parts_of(request: Request) -> AsyncIterator[bytes]:
    """Yield the parts of a request's body as they come.

    Raises:
        UsageError: if the client stops sending before the end.
    """
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(_SILENCE):
                part = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise UsageError("the request stopped before its end") from None
        yield part


async def body_of(request: Request) -> dict[str, Any]:
    """Return the JSON object of a request.

    Raises:
        UsageError: if it is none, or too large or too deep.
    """
    data = bytearray()
    async for part in parts_of(request):
        data += part
        if len(data) > _LARGEST:
            raise UsageError("the request is too large", expected=f"at most {_LARGEST} bytes")
    try:
        found = values_in(data.decode() or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError("the request is not a JSON object")
    if _is_deep(found):
        raise UsageError("the request is nested too deeply")
    return found


def text_in(content: Mapping[str, Any], word: str) -> str | None:
    """Return the text that a request has for a word, None if it has none.

    Raises:
        UsageError: if it is something else.
    """
    found = content.get(word)
    if found is None or isinstance(found, str):
        return found
    raise UsageError(f"{word} is not a text", found=ascii(found)[:100])


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        inner = [list(v.values()) if isinstance(v, dict) else v for v in level]
        level = [one for part in inner for one in part if isinstance(one, (dict, list))]
        if not level:
            return False
    return True
