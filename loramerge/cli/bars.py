"""Bars and sparklines of numbers, made of characters that the stream can encode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["bars", "sparkline"]

_EIGHTHS = "▏▎▍▌▋▊▉█"
_HEIGHTS = "▁▂▃▄▅▆▇█"
_PLAIN = "_.-=+*%#"  # heights, where a code page has no blocks
_WIDTH = 12  # characters of the longest bar
_POINTS = 16  # of a sparkline


def bars(
    values: Sequence[float | None], encoding: str | None, most: float | None = None
) -> list[str]:
    """Return a bar for each value; nothing for None.

    Args:
        encoding: of the stream.
        most: value of the longest bar; None takes the largest.
    """
    known = [abs(value) for value in values if value is not None]
    longest = most or max(known, default=0.0) or 1.0
    whole = _EIGHTHS if _has(encoding, _EIGHTHS) else ""
    shares = (None if value is None else min(1.0, abs(value) / longest) for value in values)
    return ["" if share is None else _bar(share, whole) for share in shares]


def _bar(share: float, eighths: str) -> str:
    if not eighths:
        return "#" * round(share * _WIDTH)
    full, rest = divmod(round(share * _WIDTH * 8), 8)
    return eighths[-1] * full + (eighths[rest - 1] if rest else "")


def sparkline(values: Sequence[float], encoding: str | None) -> str:
    """Return values from 0 to the largest as heights, at most a few; the rest is averaged."""
    if not values:
        return ""
    points = list(_averaged(values))
    heights = _HEIGHTS if _has(encoding, _HEIGHTS) else _PLAIN
    most = max(points)
    top = len(heights) - 1
    return "".join(heights[round(top * max(0.0, v) / most) if most > 0 else 0] for v in points)


def _averaged(values: Sequence[float]) -> Iterable[float]:
    count = min(_POINTS, len(values))
    for n in range(count):
        part = values[n * len(values) // count : (n + 1) * len(values) // count]
        yield sum(part) / len(part)


def _has(encoding: str | None, letters: str) -> bool:
    try:
        letters.encode(encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True
