"""Texts as the full-text index keeps them, and what a person types as a query.

The index finds words by their beginnings. So that `girl` finds `catGirl` and a word of Chinese or
Japanese is found inside a sentence, capitals inside words begin words, and each such character is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["query_of", "searchable"]

_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])")
_SINGLE = re.compile(r"([\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")
_WORD = re.compile(r"[^\W_]+")


def searchable(texts: Iterable[str]) -> str:
    """Return the words of texts, those with parts also in parts."""
    text = "\n".join(texts).encode("utf-8", "replace").decode("utf-8").replace("\0", " ")
    parts = _SINGLE.sub(r" \1 ", _HUMP.sub(" ", text))
    return text if parts == text else f"{text}\n{parts}"


def query_of(words: Iterable[str]) -> str:
    """Return a query that finds what has all words, in any order; empty if there are none.

    Every word may be the beginning of one; a typed word with marks in it (`red-hair`) is a phrase.
    """
    phrases = []
    for word in " ".join(words).split():
        found = _WORD.findall(_SINGLE.sub(r" \1 ", word))
        if found:
            phrases.append(f'"{" ".join(found)}"' + ("" if _SINGLE.match(found[-1]) else " *"))
    return " AND ".join(phrases)
