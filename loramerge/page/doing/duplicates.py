"""Find the copies in the index of the library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loramerge.events import Notify
from loramerge.library.functions import duplicates

__all__ = ["do"]


def do(request: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
    """Return groups of contents, the one to keep first; those at several places are groups of one.

    Raises:
        LoramergeError: if nothing is indexed yet.
    """
    found = duplicates(notify=notify)
    groups: list[tuple[list[int], list[str]]] = []
    for kept, pairs in found.groups():
        several = [kept.content, *(one.content for p in pairs for one in (p.a, p.b))]
        groups.append((list(dict.fromkeys(several)), [pair.words for pair in pairs]))
    grouped = {number for contents, _ in groups for number in contents}
    groups += [([one.content], []) for one in found.same if one.content not in grouped]
    return {
        "groups": [{"contents": contents, "words": words} for contents, words in groups],
        "unchecked": found.unchecked,
    }
