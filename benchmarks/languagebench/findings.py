"""Sentences that sum up the figures, written anew with every page."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from benchmarks.proving.cases import NUMBERS, operators
from benchmarks.proving.scores import interval
from benchmarks.proving.tables import Figures, values_of

__all__ = ["findings"]

_NAMES = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 8: "eight"}
_OTHER = ("subtract",)  # it removes adapters, so it does not compete
_SHOWN = 3  # operators that a sentence names


def findings(rows: Figures, counts: Sequence[int]) -> list[str]:
    """Return the lines of a list of findings: seeds, then each number of adapters, then scales."""
    if not rows:
        return ["Nothing is measured yet."]
    lines = [_seeds(rows)]
    lines += [_of_count(rows, count) for count in counts if _mean(rows, "linear", count)]
    lines += [_of_scales(rows, count) for count in counts if _both_scales(rows, count)]
    return [f"- {line}" for line in lines]


def _mean(rows: Figures, key: str, count: int, score: str = "mean") -> str:
    found = list(values_of(rows, key, count, score).values())
    return str(interval(found)) if found else ""


def _seeds(rows: Figures) -> str:
    seeds = len({row["seed"] for row in rows})
    if seeds == 1:
        return "Figures are those of one training of all adapters, so they have no intervals."
    many = _NAMES.get(seeds, str(seeds))
    return f"Figures are means of {many} trainings of all adapters, with 95 % intervals."


def _of_count(rows: Figures, count: int) -> str:
    """Return what the sum and the best operators keep of so many adapters."""
    kept = {
        one.name: mean(found.values())
        for one in operators()
        if one.name not in _OTHER and (found := values_of(rows, one.name, count, "mean"))
    }
    best = sorted(kept, key=lambda name: -kept[name])[:_SHOWN]
    named = ", ".join(f"`{name}` {_mean(rows, name, count)}" for name in best)
    words = [
        f"**{_NAMES[count].capitalize()} adapters:** the plain sum keeps {_mean(rows, 'linear', count)} "
        f"of each, the worst {_mean(rows, 'linear', count, 'worst')}, and gives "
        f"{_mean(rows, 'linear', count, 'right')} of the answers right. "
        f"With their defaults these keep most: {named}.",
    ]
    scaled = {
        number: mean(found.values())
        for number in NUMBERS
        if (found := values_of(rows, f"linear scale={number}", count, "mean"))
    }
    if scaled:
        number = max(scaled, key=lambda one: scaled[one])
        words.append(
            f"`--scale {number}` of the sum keeps {_mean(rows, f'linear scale={number}', count)}."
        )
    return " ".join(words)


def _both_scales(rows: Figures, count: int) -> list[tuple[float, float]]:
    """Return the retention of each operator whose default is norm-match: literal, and norm-match."""
    found = []
    for one in operators():
        scaled = values_of(rows, f"{one.name} scale=literal", count, "mean")
        usual = values_of(rows, one.name, count, "mean")
        if one.scale == "norm-match" and scaled and usual:
            found.append((mean(scaled.values()), mean(usual.values())))
    return found


def _of_scales(rows: Figures, count: int) -> str:
    """Return how often the literal scale keeps more than the norm of one adapter."""
    pairs = _both_scales(rows, count)
    more = sum(literal > usual for literal, usual in pairs)
    lost = sum(literal < 0 for literal, _ in pairs)
    return (
        f"**Scales, {_NAMES[count]} adapters:** of the {len(pairs)} operators whose default is "
        f"`norm-match`, {more or 'none'} keep more with `--scale literal`, and {lost or 'none'} then do "
        "worse than no adapter."
    )
