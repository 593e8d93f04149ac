"""Untrusted JSON → values, with one error for every fault. Standard library only."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

__all__ = ["in_words", "read_values", "values_in"]

_MOST_DIGITS = 100  # of a whole number, so that it is also a float


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def in_words(error: ValueError) -> str:
    """Return what is wrong with a text of JSON; Python's own words give advice on Python."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return "half of a surrogate pair, which is not Unicode"
    return "a number of thousands of digits" if "set_int_max_str" in str(error) else str(error)


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
    try:
        text = place.read_text("utf-8-sig")  # Windows' editors begin files with a mark
    except UnicodeDecodeError as error:
        raise ValueError(in_words(error)) from None
    return values_in(text)
