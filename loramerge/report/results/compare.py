"""The report of `compare`: the cosines of all pairs, copies, clusters and ingredients."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from loramerge.report.document import Bars, HeatMap, Notes, Part, Report, Section, Table, number

__all__ = ["report"]

_MOST = 60  # adapters whose cosines are shown in one table
_LISTED = 200  # pairs of copies
_NUMBERED = 16  # adapters up to which cells have room for numbers


def report(result: Any) -> Report:
    """Return the report of a `CompareResult`."""
    names = result.names
    return Report(
        f"{len(names)} adapters compared",
        result.verdict,
        [
            Section("Cosines", [_matrix(result, names), _estimated(result)]),
            Section("Copies", [_copies(result, names)]),
            Section("Clusters", [_clusters(result, names)]),
            Section("Ingredients", _ingredients(result, names)),
            Section("Adapters", [_files(result, names), _left_out(result)]),
        ],
    )


def _order(result: Any) -> list[int]:
    """Return the numbers of files, those of a cluster side by side, the largest clusters first."""
    grouped = [n for those in sorted(result.clusters, key=len, reverse=True) for n in those]
    rest = [n for n in range(len(result.files)) if n not in set(grouped)]
    return [*grouped, *rest][:_MOST]


def _matrix(result: Any, names: list[str]) -> HeatMap:
    order = _order(result)
    caption = "Cosine of the changes (ΔW): 1 is the same direction, 0 unrelated, −1 opposite."
    if len(order) < len(names):
        caption += f" The first {len(order)} of {len(names)} adapters, by cluster."
    return HeatMap(
        "Cosines of all pairs",
        caption,
        rows=[names[n] for n in order],
        columns=[names[n] for n in order],
        values=[[result.cosines[a][b] for b in order] for a in order],
        most=1.0,
        decimals=2,
        numbers=len(order) <= _NUMBERED,
    )


def _estimated(result: Any) -> Notes:
    if result.estimated is None:
        return Notes(())
    return Notes((("note", f"Cosines below {result.estimated} are estimates."),))


def _copies(result: Any, names: list[str]) -> Notes:
    lines = [("", f"{result.words(one)}.") for one in result.copies[:_LISTED]]
    kept = list(result.keep.items())
    lines += [
        ("note", f"{names[n]} holds nothing that {names[k]} lacks.") for n, k in kept[:_LISTED]
    ]
    more = max(len(result.copies), len(kept)) - _LISTED
    return Notes((*lines, ("note", f"… and {more} more")) if more > 0 else tuple(lines))


def _clusters(result: Any, names: list[str]) -> Table:
    rows = [(str(number), ", ".join(names[n] for n in those))
            for number, those in enumerate(result.clusters, 1)]  # fmt: skip
    return Table("Adapters that resemble each other", ("cluster", "adapters"), rows)


def _ingredients(result: Any, names: list[str]) -> list[Part]:
    found = result.found
    if found is None:
        return []
    order = sorted(found.weights, key=lambda n: -found.shares[n])
    bars = Bars(
        f"Ingredients of {PurePath(result.mystery).name}",
        f"Norm of each part beside that of the whole; {100 * found.remainder:.3g} % of the norm stays "
        "unexplained.",
        series=("share of the norm",),
        rows=[
            (f"{names[n]}, weight {number(found.weights[n])}", (found.shares[n],)) for n in order
        ],
    )
    return [bars]


def _files(result: Any, names: list[str]) -> Table:
    rows = [
        (name, one.family or "–", f"{one.dialect}, {one.dtype}", str(one.rank), number(one.norm, 4))
        for name, one in zip(names, result.files, strict=True)
    ]
    return Table("Adapters", ("adapter", "family", "format", "rank", "norm of ΔW"), rows)


def _left_out(result: Any) -> Notes:
    return Notes(
        tuple(
            ("warning", f"left out: {PurePath(path).name}: {reason}")
            for path, reason in result.unreadable.items()
        )
    )
