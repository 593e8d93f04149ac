"""The report of `merge`: the inputs, and how far each block moved."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from loramerge.errors import sized
from loramerge.report.document import Bars, HeatMap, Notes, Report, Section, Table, facts, number

__all__ = ["report"]


def report(result: Any) -> Report:
    """Return the report of a `MergeResult`."""
    output = PurePath(result.output).name
    moved = None if result.moved is None else _percent(result.moved)
    reference = PurePath(result.reference).name
    return Report(
        output,
        _lead(result, moved, reference),
        [
            Section("Result", [_facts(result, moved)]),
            Section("Inputs", [_inputs(result), _cosines(result)]),
            Section("Blocks", [_blocks(result, reference)]),
            Section("Notes", [Notes(tuple(("note", text) for text in result.notes))]),
        ],
    )


def _lead(result: Any, moved: str | None, reference: str) -> str:
    of = f"of the norm of {reference}."
    if result.dry_run:
        would = f" The change would be {moved} {of}" if moved else ""
        return f"A dry run: nothing was merged.{would}"
    return f"Merged by {result.method}" + (f"; the change is {moved} {of}" if moved else ".")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.3g} %"


def _facts(result: Any, moved: str | None) -> Any:
    least, most = result.factors
    scale = f"{result.scale}" + (f" (×{least:.3g} to ×{most:.3g})" if least != most else "")
    kept = None if result.survived is None else _percent(result.survived)
    return facts(
        {
            "file": PurePath(result.output).name,
            "size": None if result.size is None else sized(result.size),
            "family": result.family,
            "layout": ", ".join(sorted(set(result.layouts.values()))),
            "method": f"{result.method}, scale {scale}",
            "base": None if result.base is None else PurePath(result.base).name,
            "tensors to merge"
            if result.dry_run
            else "merged tensors": f"{result.merged}, rounded to {', '.join(result.dtypes)}",
            "incomplete tensors": result.united or None,
            "size of change": moved,
            "kept after rounding": kept,
            "estimated": result.estimated,
        }
    )


def _inputs(result: Any) -> Table:
    rows = [(PurePath(one["path"]).name, _given(one)) for one in (*result.models, *result.adapters)]
    return Table("Inputs", ("input", "weight"), rows)


def _given(one: Any) -> str:
    return f"layers {one['layers']}" if "layers" in one else str(one["weight"])


def _cosines(result: Any) -> HeatMap:
    names = [PurePath(one["path"]).name for one in result.models]
    known = {(i, j): cosine for i, j, cosine in result.cosines}
    values = [
        [1.0 if i == j else known.get((min(i, j), max(i, j))) for j in range(len(names))]
        for i in range(len(names))
    ]
    return HeatMap(
        "Cosines of the changes",
        "Cosine of the changes of two inputs from the base: 1 is the same direction, 0 unrelated.",
        rows=names,
        columns=names,
        values=values if known else [],
        most=1.0,
        decimals=2,
    )


def _blocks(result: Any, reference: str) -> Bars:
    return Bars(
        "Size of the change by block",
        f"Norm of the change from {reference}, relative to the norm of its weights.",
        series=("size of change",),
        rows=[(name, (moved,)) for name, moved in result.blocks.items()],
        show=lambda value: "–" if value is None else f"{number(100 * value)} %",
    )
