"""Texts and bytes of files beside the tensors of an adapter, damaged from a seed."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

__all__ = ["damaged", "tampered"]

_ODD: tuple[Any, ...] = (
    0, -1, 1.5, 2**63, 10**400, float("nan"), float("-inf"), None, True, "", "x", [], {}, [[]],
    {"a": {}}, "\x1b[31m", "\u202e", "a" * 3000, "../../x", "/etc/passwd", "NaN", ["a", 1, None],
    [0] * 70, "(a+)+$",
)  # fmt: skip
_DEEP = ("[" * 20_000, '{"a":' * 20_000, '{"a":' * 3000 + "1" + "}" * 3000)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return each container in a value with each of its keys."""
    keys = (
        list(value)
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else ()
    )
    return [(value, key) for key in keys] + [p for key in keys for p in _places(value[key])]


def tampered(content: Any, seed: random.Random) -> str:
    """Return a value as JSON, and so YAML, in which up to three entries are not what they were."""
    content = json.loads(json.dumps(content))
    for _ in range(seed.choice((0, 1, 1, 2, 3))):
        places = _places(content)
        if not places:
            break
        holder, key = seed.choice(places)
        how = seed.randrange(4)
        if how == 0 and isinstance(holder, dict):
            holder[seed.choice(("", "\x1b[2J", "x" * 2000, str(key).upper(), "a.b"))] = holder.pop(
                key
            )
        elif how == 1:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(seed.choice(_ODD))
    text = json.dumps(content, ensure_ascii=seed.random() < 0.5)
    if seed.random() < 0.1:
        return seed.choice(_DEEP)
    if seed.random() < 0.1:
        place = seed.randrange(len(text) + 1)
        return (
            text[:place]
            + seed.choice(("", "\0", "}", "&a [*a]", "9" * 5000, "\ufeff", "\t"))
            + text[place:]
        )
    return text


def damaged(raw: bytes, seed: random.Random) -> bytes:
    """Return bytes of which some are not what they were, cut at times."""
    whole = bytearray(raw)
    for _ in range(seed.choice((0, 1, 1, 2, 8))):
        place = seed.randrange(len(whole))
        whole[place : place + seed.choice((0, 1, 1, 4))] = seed.randbytes(seed.choice((1, 1, 4, 8)))
    return bytes(whole[: seed.randrange(len(whole))] if seed.random() < 0.2 else whole)
