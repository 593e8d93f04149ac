"""Texts of the index → facts, of the types that they are meant to have.

The index is a file, so others may have written in it, or a disk has lost a part. What is not of its type
is left out: fewer words are shown, and `library scan --fresh` reads the files again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from loramerge.files.json_values import values_in

__all__ = ["facts_in", "rating_in", "sidecars_in", "tags_in", "text_in"]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _may_be_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _may_be_number(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


def _are_ranks(value: Any) -> bool:
    return _are_counts(value) and all(key.isdecimal() and len(key) < 10 for key in value)


def _are_counted(value: Any) -> bool:
    """Return whether this is a list of pairs of a text and its count."""
    return isinstance(value, list) and all(
        isinstance(one, list) and len(one) == 2 and _is_text(one[0]) and _is_count(one[1])
        for one in value
    )


Types = Mapping[str, Callable[[Any], bool]]

_FACTS: Types = {
    **dict.fromkeys(
        ("what", "dialect", "family", "trained_on", "title", "comment", "autov2", "autov3",
         "not_sketched"), _may_be_text,
    ),
    **dict.fromkeys(("size", "modules"), _is_count),
    **dict.fromkeys(("kinds", "components"), _are_counts),
    **dict.fromkeys(("dtypes", "trigger_words", "problems"), _are_texts),
    "ranks": _are_ranks,
    "tags": _are_counted,
}  # fmt: skip
_SIDECARS: Types = {
    **dict.fromkeys(("title", "version", "base", "notes", "description", "preview"), _may_be_text),
    **dict.fromkeys(("trigger_words", "tags", "sources", "problems"), _are_texts),
    "weight": _may_be_number,
}


def _values(text: Any) -> Any:
    try:
        return values_in(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _typed(text: Any, types: Types) -> dict[str, Any]:
    found = _values(text)
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if key in types and types[key](value)}


def facts_in(text: Any) -> dict[str, Any]:
    """Return the facts about a content; see `contents.read`."""
    return _typed(text, _FACTS)


def sidecars_in(text: Any) -> dict[str, Any]:
    """Return the facts of sidecars; see `sidecars.SidecarFacts.json`."""
    return _typed(text, _SIDECARS)


def tags_in(text: Any) -> tuple[str, ...]:
    """Return one's own tags."""
    found = _values(text)
    return tuple(filter(_is_text, found)) if isinstance(found, list) else ()


def text_in(value: Any) -> str | None:
    """Return a text; None for anything else."""
    return value if isinstance(value, str) else None


def rating_in(value: Any) -> int | None:
    """Return a rating from 1 to 5; None for anything else."""
    return value if _is_count(value) and 1 <= value <= 5 else None
