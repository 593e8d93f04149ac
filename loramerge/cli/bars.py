"""BarColumn and sparklines of numbers, made of characters that the stream can encode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from loramerge.records import record

__all__ = ["BarColumn", "Drawn", "SparklineColumn"]

_EIGHTHS = "▏▎▍▌▋▊▉█"
_HEIGHTS = "▁▂▃▄▅▆▇█"
_PLAIN = "_.-=+*%#"  # heights, where a code page has no blocks


class Drawn(Protocol):
    """A column of a table that is drawn."""

    @property
    def name(self) -> str:
        """The column's name."""

    def cells(self, longest: int, encoding: str | None) -> list[str]:
        """Return the cells of all rows.

        Args:
            longest: characters that a cell may take.
            encoding: of the stream.
        """


@record
class BarColumn:
    """A bar for each value, nothing for None.

    Args:
        most: value of the longest bar; None takes the largest.
    """

    name: str
    values: Sequence[float | None]
    most: float | None = None

    def cells(self, longest: int, encoding: str | None) -> list[str]:
        known = [abs(value) for value in self.values if value is not None]
        most = self.most or max(known, default=0.0) or 1.0
        eighths = _EIGHTHS if _has(encoding, _EIGHTHS) else ""
        shares = (None if value is None else min(1.0, abs(value) / most) for value in self.values)
        return ["" if share is None else _bar(share * longest, eighths) for share in shares]


def _bar(length: float, eighths: str) -> str:
    if not eighths:
        return "#" * round(length)
    full, rest = divmod(round(length * 8), 8)
    return eighths[-1] * full + (eighths[rest - 1] if rest else "")


@record
class SparklineColumn:
    """A line of heights for each list of values, from 0 to the largest; many are averaged."""

    name: str
    several: Sequence[Sequence[float]]

    def cells(self, longest: int, encoding: str | None) -> list[str]:
        heights = _HEIGHTS if _has(encoding, _HEIGHTS) else _PLAIN
        return [_sparkline(list(_averaged(values, longest)), heights) for values in self.several]


def _sparkline(points: Sequence[float], heights: str) -> str:
    most, top = max(points, default=0.0), len(heights) - 1
    return "".join(heights[round(top * max(0.0, v) / most) if most > 0 else 0] for v in points)


def _averaged(values: Sequence[float], most: int) -> Iterable[float]:
    count = min(most, len(values))
    for n in range(count):
        part = values[n * len(values) // count : (n + 1) * len(values) // count]
        yield sum(part) / len(part)


def _has(encoding: str | None, letters: str) -> bool:
    try:
        letters.encode(encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True
