"""PEFT's patterns: values for modules whose path an expression matches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

__all__ = ["pattern_value"]


def pattern_value(patterns: Mapping[str, Any], path: str) -> Any:
    """Return the value of the first PEFT pattern that matches a module's path.

    PEFT matches each key as a regular expression on the path or on its end after a dot.
    """
    for pattern, value in patterns.items():
        if _matches(pattern, path):
            return value
    return None


_PLAIN = re.compile(r"[\w.]*\.(\w+)")


@cache
def _pattern(pattern: str) -> tuple[str, re.Pattern[str] | None]:
    """Return what a path must end with, and the expression; None if it is not one."""
    plain = _PLAIN.fullmatch(pattern)
    try:
        return plain[1] if plain else "", re.compile(rf"(.*\.)?({pattern})$")
    except re.error:
        return pattern, None


def _matches(pattern: str, path: str) -> bool:
    end, expression = _pattern(pattern)
    return path.endswith(end) and (expression is None or expression.match(path) is not None)
