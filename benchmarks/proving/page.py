"""Write a page of docs/: a text whose marks are replaced by tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["DOCS", "fill", "part", "write"]

DOCS = Path(__file__).resolve().parents[2] / "docs"


def part(text: str, name: str) -> list[str]:
    """Return the lines between `<!-- name -->` and `<!-- end -->`.

    Raises:
        ValueError: if a text has no such part.
    """
    found = _found(text, name)
    return found[1].splitlines()


def fill(text: str, name: str, lines: Sequence[str]) -> str:
    """Return a text with the part between `<!-- name -->` and `<!-- end -->` replaced.

    Raises:
        ValueError: if it has no such part.
    """
    found = _found(text, name)
    body = "".join(f"{line}\n" for line in lines)
    return text[: found.start(1)] + body + text[found.end(1) :]


def _found(text: str, name: str) -> re.Match[str]:
    found = re.search(f"<!-- {re.escape(name)} -->\n(.*?)<!-- end -->", text, re.DOTALL)
    if not found:
        raise ValueError(f"the page has no part {name!r}")
    return found


def write(page: Path, text: str, parts: Mapping[str, Sequence[str]]) -> None:
    """Write a page: a text with its parts filled."""
    for name, lines in parts.items():
        text = fill(text, name, lines)
    page.write_text(text, "utf-8")
