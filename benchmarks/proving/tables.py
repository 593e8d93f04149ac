"""The tables of the pages, from figures: dictionaries, one for each case, n and seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.proving.cases import NUMBERS, operators
from benchmarks.proving.scores import Interval, interval

__all__ = [
    "Figures", "lead", "operator_table", "parameter_table", "resize_table", "scale_table",
    "score_table", "table", "values_of",
]  # fmt: skip

Figures = Sequence[dict[str, Any]]
_NONE = "–"


def values_of(rows: Figures, key: str, count: int, score: str) -> dict[int, float]:
    """Return the scores of a case by seed."""
    chosen = (row for row in rows if row["key"] == key and row["n"] == count)
    return {row["seed"]: row[score] for row in chosen if score in row}


def _cell(rows: Figures, key: str, count: int, score: str) -> str:
    found = values_of(rows, key, count, score)
    return str(interval(list(found.values()))) if found else _NONE


def lead(rows: Figures, key: str, other: str, count: int) -> Interval | None:
    """Return the mean lead of a case over another, paired by seed."""
    mine, theirs = (values_of(rows, one, count, "mean") for one in (key, other))
    both = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
    return interval(both) if both else None


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    return [_row(head), "|---" * len(head) + "|", *map(_row, body)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def operator_table(rows: Figures, counts: Sequence[int]) -> list[str]:
    """Return the lines of a table: retention and worst concept of every operator, by default."""
    head = ["method", "scale", *(f"n = {n}: {s}" for n in counts for s in ("mean", "worst"))]
    return table(
        head,
        (
            [
                f"`{one.name}`",
                one.scale,
                *(_cell(rows, one.name, n, score) for n in counts for score in ("mean", "worst")),
            ]
            for one in operators()
        ),
    )


def score_table(rows: Figures, count: int, scores: Mapping[str, str]) -> list[str]:
    """Return the lines of a table: other scores of every operator, by default.

    Args:
        scores: name in the figures → head of the column.
    """
    return table(
        ["method", *scores.values()],
        (
            [f"`{one.name}`", *(_cell(rows, one.name, count, score) for score in scores)]
            for one in operators()
            if values_of(rows, one.name, count, "mean")
        ),
    )


def scale_table(rows: Figures, count: int, scales: Sequence[str]) -> list[str]:
    """Return the lines of a table: retention of every operator with every scale; the default is bold."""

    def cell(one: Any, scale: str) -> str:
        if scale == one.scale:
            return f"**{_cell(rows, one.name, count, 'mean')}**"
        return _cell(rows, f"{one.name} scale={scale}", count, "mean")

    body = [
        [f"`{one.name}`", *(cell(one, scale) for scale in scales)]
        for one in operators()
        if values_of(rows, one.name, count, "mean")
    ]
    for number in NUMBERS:
        text = _cell(rows, f"linear scale={number}", count, "mean")
        body.append([f"`linear`, `--scale {number}`", text, *[_NONE] * (len(scales) - 1)])
    return table(["method", *scales], body)


def parameter_table(rows: Figures, counts: Sequence[int]) -> list[str]:
    """Return the lines of a table: parameters beside their default, with their lead over it."""
    keys = dict.fromkeys((r["key"], r["method"]) for r in rows if r["table"] == "parameters")
    head = ["method", "parameter", *(f"n = {n}: mean (lead over the default)" for n in counts)]

    def cell(key: str, method: str, count: int) -> str:
        found = lead(rows, key, method, count)
        text = _cell(rows, key, count, "mean")
        return text if found is None else f"{text} ({found})"

    return table(
        head,
        (
            [
                f"`{method}`",
                f"`{key.removeprefix(method).strip()}`",
                *(cell(key, method, n) for n in counts),
            ]
            for key, method in keys
        ),
    )


def resize_table(rows: Figures, of: str) -> list[str]:
    """Return the lines of a table: every rule of resize and its values, from large to small.

    Args:
        of: `one`, each adapter alone, or `mix`, the sum of all.
    """
    found: dict[tuple[str, Any], list[dict[str, Any]]] = {}
    for row in rows:
        if row["table"] == "resize" and row["of"] == of:
            found.setdefault((row["rule"], row["value"]), []).append(row)
    return table(
        ["rule", "size", "mean", "worst"],
        (
            [
                _spelled(*key),
                *(str(interval([one[s] for one in ones])) for s in ("size", "mean", "worst")),
            ]
            for key, ones in found.items()
        ),
    )


def _spelled(name: str, value: Any) -> str:
    """Return a rule with its value; the size of `max_size` is given as that of a uniform rank."""
    rule, _, fair = name.partition(" ")
    words = f"`{rule}` of rank {value}" if rule == "max_size" else f"`{rule}={value}`"
    return f"{words}, fair" if fair else words
