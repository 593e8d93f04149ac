"""The two grounds side by side, from the tables of their pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from benchmarks.proving.tables import table

__all__ = ["both_table", "cells_of", "common_defaults", "order_agreement", "orders_table"]


def cells_of(lines: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a table in Markdown: head → text."""
    if len(lines) < 2:
        return []
    head, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(head, row, strict=True)) for row in body]


def _number(text: str) -> float | None:
    """Return the mean of a cell `0.62 ± 0.02`, or None of an empty one."""
    first = text.partition("±")[0].strip().replace("−", "-")
    return float(first) if first and first != "–" else None


def _means(lines: Sequence[str], count: int) -> dict[str, float]:
    found = {row["method"]: _number(row[f"n = {count}: mean"]) for row in cells_of(lines)}
    return {name: value for name, value in found.items() if value is not None}


def _places(values: Mapping[str, float]) -> dict[str, float]:
    """Return the places of values in their order, from the lowest; equal ones share a mean place."""
    ordered = sorted(values.values())
    return {
        name: mean(place for place, other in enumerate(ordered) if other == value)
        for name, value in values.items()
    }


def order_agreement(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Return Spearman's correlation of the names that both have: 1 the same order, −1 the reverse.

    Raises:
        ZeroDivisionError: if all values of one are equal.
    """
    names = [name for name in first if name in second]
    a, b = (_places({name: one[name] for name in names}) for one in (first, second))
    middle = (len(names) - 1) / 2
    products = sum((a[name] - middle) * (b[name] - middle) for name in names)
    spreads = [sum((one[name] - middle) ** 2 for name in names) for one in (a, b)]
    return products / (spreads[0] * spreads[1]) ** 0.5


def both_table(shapes: Sequence[str], language: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Return the lines of a table: the mean retention of every operator on both grounds.

    Args:
        shapes, language: the lines of their tables of operators.
    """
    found = {name: cells_of(lines) for name, lines in (("shapes", shapes), ("language", language))}
    rows = {name: {row["method"]: row for row in ones} for name, ones in found.items()}
    keys = [(ground, n) for n in counts for ground in found]
    body = [
        [method, *(rows[g].get(method, {}).get(f"n = {n}: mean", "–") for g, n in keys)]
        for method in rows["language"]
    ]
    agreed = []
    for n in counts:
        means = [_means(lines, n) for lines in (shapes, language)]
        alike = len(set(means[0]) & set(means[1])) > 2
        agreed += ["", f"{order_agreement(*means):.2f}".replace("-", "−") if alike else "–"]
    return table(
        ["method", *(f"n = {n}: {ground}" for ground, n in keys)],
        [*body, ["*agreement of orders*", *agreed]],
    )


def common_defaults(shapes: Sequence[str], language: Sequence[str]) -> list[str]:
    """Return the lines of a table: certainly better alternatives to a default that both grounds name."""
    kind = ("method", "n", "better than the default")
    here = {tuple(row[k] for k in kind): row["lead"] for row in cells_of(language)}
    there = {tuple(row[k] for k in kind): row["lead"] for row in cells_of(shapes)}
    body = [[*key, there[key], lead] for key, lead in here.items() if key in there]
    return table([*kind, "lead: shapes", "lead: language"], body)


def orders_table(shapes: Sequence[str], language: Sequence[str]) -> list[str]:
    """Return the lines of a table: published orders, and whether they hold on each ground."""
    there = {row["published"]: row for row in cells_of(shapes)}
    body = []
    for row in cells_of(language):
        other = there.get(row["published"], {})
        leads = [one.get("lead of the first", "–") for one in (other, row)]
        holds = [one.get("holds", "–") for one in (other, row)]
        body.append([row["published"], leads[0], holds[0], leads[1], holds[1]])
    head = ["published", "shapes: lead", "holds", "language: lead", "holds"]
    return table(head, body)
