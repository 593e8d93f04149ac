"""PEFT's patterns: values for modules whose path an expression matches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from loramerge.adapter.formats.linear_expression import Expression, NotLinear
from loramerge.errors import FormatError

__all__ = ["pattern_value"]


def pattern_value(patterns: Mapping[str, Any], path: str) -> Any:
    """Return the value of the first PEFT pattern that matches a module's path.

    PEFT matches each key as a regular expression on the path or on its end after a dot. The key
    comes from an untrusted file, so it is never given to a backtracking engine.

    Raises:
        FormatError: if an expression cannot be matched in time that grows with the path's length.
    """
    for pattern, value in patterns.items():
        if _matches(pattern, path):
            return value
    return None


_PLAIN = re.compile(r"[\w.]*")


def _matches(pattern: str, path: str) -> bool:
    if _PLAIN.fullmatch(pattern):  # nearly all are names
        return _ends_with(path, pattern)
    expression = _expression(pattern)
    return path.endswith(pattern) if expression is None else expression.matches(path)


def _ends_with(path: str, name: str) -> bool:
    """Return whether a path is a name or ends in it after a dot; a dot in the name is any letter."""
    start = len(path) - len(name)
    if start < 0 or (start > 0 and path[start - 1] != ".") or name[-1:] not in (path[-1:], ".", ""):
        return False
    end = path[start:]
    return end == name or all(
        a == b or (a == "." and b != "\n") for a, b in zip(name, end, strict=True)
    )


@cache
def _expression(pattern: str) -> Expression | None:
    """Return the expression for whole paths; None if it is not one.

    Raises:
        FormatError: see `pattern_value`.
    """
    try:
        return Expression(rf"(.*\.)?({pattern})$")
    except re.error:
        return None
    except NotLinear as error:
        raise FormatError(
            f"a pattern of the configuration is refused: {error}",
            found=pattern[:80],
            hint="name the modules instead, or use letters, classes, groups, | * + and ? alone",
        ) from None
