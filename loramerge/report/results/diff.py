"""The report of `diff`: what differs, and where in the network."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from loramerge.errors import listed
from loramerge.report.blocks import heat_maps, norm_bars, of_rows, spectra
from loramerge.report.document import Bars, Notes, Part, Report, Section, Table, facts, number
from loramerge.report.plain import plain_report

__all__ = ["report"]


def report(result: Any) -> Report:
    """Return the report of a `DiffResult`; of checkpoints, what `--json` prints."""
    if getattr(result, "comparison", None) is None:
        return plain_report("Differences", result.json())
    a, b = (PurePath(name).name for name in (result.a, result.b))
    found = result.comparison
    return Report(
        f"{a} and {b}",
        result.verdict,
        [
            Section("Relation", [_relation(a, b, found), _alone(found)]),
            Section("Where they differ", _places(found)),
            Section("Weights", _weights(result)),
            Section("FactList", [_pairs("Properties", result.facts.items())]),
            Section("Metadata", [_pairs("Entries that differ", result.metadata.items())]),
        ],
    )


def _relation(a: str, b: str, found: Any) -> Any:
    total, shared = found.total, found.shared
    return facts(
        {
            "A": a,
            "B": b,
            "shared modules": len(found.sites),
            "cosine": number(shared.cosine, 4),
            "relative distance": number(total.distance, 4),
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
    rows = [(str(name), _said(a), _said(b)) for name, (a, b) in pairs]
    return Table(caption, ("", "A", "B"), rows)


def _said(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{name} ×{n}" for name, n in value.items()) or "none"
    return (
        (", ".join(map(str, value)) or "none") if isinstance(value, (list, tuple)) else str(value)
    )
