"""The report of `diff`: what differs, and where in the network."""

from __future__ import annotations

import math
from typing import Any

from loramerge.errors import listed, sized
from loramerge.report.blocks import heat_maps, norm_bars, of_rows, spectra
from loramerge.report.document import (
    Bars,
    FactList,
    Notes,
    Part,
    Report,
    Section,
    Table,
    facts,
    number,
)

__all__ = ["report"]

_LABELS = {"kinds": "kind of modules", "ranks": "rank", "dtypes": "type of numbers"}


def report(result: Any) -> Report:
    """Return the report of an `AdapterDiff` or a `CheckpointDiff`."""
    a, b = result.names
    if hasattr(result, "likeness"):
        return _of_checkpoints(result, a, b)
    found = result.comparison
    return Report(
        f"{a} and {b}",
        result.verdict,
        [
            Section("Relation", [_relation(a, b, found), _alone(found)]),
            Section("Where they differ", _places(found)),
            Section("Weights", _weights(result)),
            Section("Facts", [_pairs("Properties", result.facts.items())]),
            Section("Metadata", [_pairs("Entries that differ", result.metadata.items())]),
        ],
    )


def _of_checkpoints(result: Any, a: str, b: str) -> Report:
    found = result.likeness
    return Report(
        f"{a} and {b}",
        result.verdict,
        [
            Section("Relation", [_likeness(a, b, found), _lacking(found)]),
            Section("Where they differ", _gaps(found)),
            Section("Facts", [_pairs("Properties", result.facts.items())]),
            Section("Metadata", [_pairs("Entries that differ", result.metadata.items())]),
        ],
    )


def _likeness(a: str, b: str, found: Any) -> FactList:
    total, largest = found.total, found.largest
    most = largest and f"{largest.site.name}: {_percent(largest.gap.distance)}"
    return facts(
        {
            "A": a,
            "B": b,
            "tensors that differ": f"{total.differing} of {total.tensors} in all",
            "of these by rounding alone": total.rounded if total.differing else None,
            "distance": _percent(total.distance),
            "cosine": number(total.cosine, 4) if total.differing else None,
            "largest distance": most,
        }
    )


def _lacking(found: Any) -> Notes:
    lines = [
        ("note", f"only in {side}, of {part}: {listed(names, 6)}")
        for side, parts in (("A", found.only_a), ("B", found.only_b))
        for part, names in parts.items()
    ]
    lines += [
        ("note", f"{words}: {listed(names, 6)}")
        for names, words in (
            (found.misfits, "other shapes"),
            (found.unreadable, "not compared"),
            (found.other_constants, "constants that differ"),
        )
        if names
    ]
    return Notes(tuple(lines))


def _gaps(found: Any) -> list[Part]:
    differing = {name: gap for name, gap in found.blocks.items() if gap.differing}
    if not differing:
        return []
    bars = Bars(
        "Distance by block",
        "‖B − A‖ relative to the larger norm, over the tensors that differ. Blocks that are equal in "
        "every tensor are left out.",
        series=("distance",),
        rows=[(name, (gap.distance,)) for name, gap in differing.items()],
        show=_percent,
    )
    values = {one.site.name: 100 * one.gap.distance for one in found.measured
              if one.matrix and one.gap.differing}  # fmt: skip
    maps = heat_maps(
        values,
        "Distance by block and layer, in %",
        "Of the matrices that differ; the mean where a cell has several.",
        together=lambda several: sum(several) / len(several),
    )
    rows = [
        (name, f"{gap.differing} of {gap.tensors}", str(gap.rounded), _percent(gap.distance),
         number(gap.cosine, 4))
        for name, gap in found.blocks.items()
    ]  # fmt: skip
    head = ("block", "tensors that differ", "by rounding alone", "distance", "cosine")
    return [bars, *maps, Table("All blocks", head, rows, True)]


def _percent(share: float | None) -> str:
    if share is None or not math.isfinite(share):
        return "–"
    return f"{100 * share:.3g} %"


def _relation(a: str, b: str, found: Any) -> Any:
    total, shared = found.total, found.shared
    return facts(
        {
            "A": a,
            "B": b,
            "shared modules": len(found.sites),
            "cosine": number(shared.cosine, 4),
            "distance, shared modules": number(shared.distance, 4),
            "distance, all modules": number(total.distance, 4) if total != shared else None,
            "best fit": f"B ≈ {number(shared.fit, 4)} · A" if shared.fit is not None else None,
            "norm of A": number(total.aa**0.5, 4),
            "norm of B": number(total.bb**0.5, 4),
        }
    )


def _alone(found: Any) -> Notes:
    lines = [
        ("note", f"{len(names)} modules {words}: {listed(list(names), 6)}")
        for names, words in (
            (found.only_a, "are only in A"),
            (found.only_b, "are only in B"),
            (found.skipped, "need a base and were not compared"),
        )
        if names
    ]
    return Notes(tuple(lines))


def _places(found: Any) -> list[Part]:
    blocks = found.blocks()
    bars = Bars(
        "Cosine and distance by block",
        "Cosine: 1 is the same direction, 0 unrelated. Distance: relative to the larger norm; 0 is "
        "equal.",
        series=("cosine", "distance"),
        rows=[(name, (one.cosine, one.distance)) for name, one in blocks.items()],
        most=max([1.0, *(one.distance for one in blocks.values())]),
    )
    distances = {site.name: one.distance for site, one in found.sites.items()}
    maps = heat_maps(
        distances,
        "Distance by block and layer",
        "Relative distance of the two changes, the mean where a cell has several modules.",
        together=lambda several: sum(several) / len(several),
        most=max([1.0, *distances.values()]),
    )
    return [bars, *maps]


def _weights(result: Any) -> list[Part]:
    rows = getattr(result, "measured", None)
    if rows:
        known = {"A": of_rows(rows[0]), "B": of_rows(rows[1])}
        return [norm_bars(known), spectra(known)]
    blocks = result.comparison.blocks()
    return [
        Bars(
            "Size of the change by block",
            "Norm of the change (‖ΔW‖, Frobenius) over the shared modules of a block.",
            series=("A", "B"),
            rows=[(name, (one.aa**0.5, one.bb**0.5)) for name, one in blocks.items()],
        )
    ]


def _pairs(caption: str, pairs: Any) -> Table:
    rows = [
        (_LABELS.get(name, str(name)), *(_said(one, name) for one in pair)) for name, pair in pairs
    ]
    return Table(caption, ("", "A", "B"), rows)


def _said(value: Any, name: str = "") -> str:
    if value is None:
        return "–"
    if name == "size":
        return sized(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} ×{n}" for name, n in value.items()) or "none"
    return (
        (", ".join(map(str, value)) or "none") if isinstance(value, (list, tuple)) else str(value)
    )
