"""Untrusted JSON → values, with one error for every fault. Standard library only."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

__all__ = ["read_values", "values_in"]

_MOST_DIGITS = 100  # of a whole number, so that it is also a float


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def values_in(text: str) -> Any:
    """Return the values in a JSON text.

    Raises:
        ValueError: if this is not JSON, is nested too deeply, or a whole number has over 100 digits.
    """
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_values(path: str | PathLike[str]) -> Any:
    """Return the values in a JSON file.

    Raises:
        ValueError: see `values_in`; also if it is not UTF-8.
        OSError: if the file cannot be read, or is not a regular file.
    """
    place = Path(path)
    if place.exists() and not place.is_file():  # a pipe would be waited for without end
        raise OSError("not a regular file")
    return values_in(place.read_text("utf-8"))
