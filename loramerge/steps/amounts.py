"""Sizes of files and memory as people write them: 20MB, 800KB, 50%."""

from __future__ import annotations

import math
from collections.abc import Mapping

from loramerge.errors import UsageError

__all__ = ["memory_in_bytes", "size_in_bytes", "size_label"]

_SMALLEST = 1000  # bytes; a smaller number lacks its unit
_UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20,
    "GIB": 1 << 30,
}  # fmt: skip


def size_in_bytes(text: str, whole: int) -> int:
    """Return the bytes of `20MB`, `800KB`, `50%` (of `whole` bytes), or a plain number of bytes.

    MB is 10⁶, MiB 2²⁰.

    Raises:
        UsageError: if it cannot be understood or is not positive.
    """
    return _bytes_of(text, _UNITS | {"%": whole}, "20MB, 800KB, or 50% of the input")


def memory_in_bytes(text: str) -> int:
    """Return the bytes of `8GB`, `7500MB`, `8GiB`.

    Raises:
        UsageError: if it cannot be understood or is not positive.
    """
    return _bytes_of(text, _UNITS, "8GB, 7500MB or 8GiB")


def _bytes_of(text: str, units: Mapping[str, int], expected: str) -> int:
    stripped = text.strip().upper().replace(" ", "")
    number = stripped.rstrip("KMGIB%")
    unit = stripped[len(number) :]
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not value > 0 or not math.isfinite(value) or unit not in units:
        raise UsageError(f"{text!r} is not a size", expected=expected)
    if not unit and value < _SMALLEST:
        raise UsageError(
            f"{value:g} bytes is too small", expected=expected, hint=f"did you mean {value:g}MB?"
        )
    return int(value * units[unit] / (100 if unit == "%" else 1))


def size_label(text: str) -> str:
    """Return a text with sizes in the form that names of files have."""
    return text.replace("%", "pct").replace(" ", "")
