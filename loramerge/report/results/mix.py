"""The report of `mix`: the inputs, how they relate, and the weights of the result."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from loramerge.errors import listed, sized
from loramerge.report.blocks import measured
from loramerge.report.document import (
    Bars,
    FactList,
    HeatMap,
    Notes,
    Part,
    Report,
    Section,
    Table,
    facts,
    number,
)
from loramerge.report.results.inspect import shape_figures

__all__ = ["accuracy", "report", "result_facts"]


def report(result: Any) -> Report:
    """Return the report of a `MixResult`."""
    names = [one["adapter"] for one in result.inputs]
    known = {} if result.adapter is None else measured(result.adapter)
    terms = " + ".join(_term(one) for one in result.inputs)
    weights = shape_figures({"": known}, bars=result.interference is None) if known else []
    title = PurePath(result.output).name if result.output else "A mix"
    return Report(
        title,
        f"{terms}: {accuracy(result)}.",
        [
            Section("Result", [result_facts(result, {"method": _method(result)})]),
            Section("Inputs", [_inputs(result)]),
            Section("How the inputs relate", _relations(result.interference, names)),
            Section("Weights of the result", weights),
        ],
    )


def _term(one: dict[str, Any]) -> str:
    """Return an input with its weight: `0.7 × style`, `style (late.yaml)`."""
    try:
        return f"{float(one['weight']):g} × {one['adapter']}"
    except ValueError:
        return f"{one['adapter']} ({one['weight']})"


def _method(result: Any) -> str:
    words = [result.method, *([f"corrected by {result.correction}"] if result.correction else [])]
    return f"{', '.join(words)}, scale {result.scale}"


def accuracy(result: Any) -> str:
    """Return how exact a computed adapter is, in words."""
    if not result.lossy:
        return "no rank was lowered"
    kept = f"{100 * result.norm_kept:.4g} % of the norm kept"
    return f"relative error {number(result.relative_error, 4)}, {kept}"


def result_facts(result: Any, more: dict[str, Any] | None = None) -> FactList:
    """Return the facts about an adapter that was computed."""
    worst = result.worst
    return facts(
        {
            "file": PurePath(result.output).name if result.output else None,
            "size": None if result.size is None else sized(result.size),
            "format": f"{result.dialect}, {result.dtype}" if result.dialect else None,
            "family": result.family or "unknown",
            "modules": result.modules,
            "rank": ", ".join(f"{rank} ×{n}" for rank, n in result.ranks.items()),
            **(more or {}),
            "accuracy": accuracy(result),
            "worst module": f"{worst[0]}: relative error {number(worst[1], 4)}" if worst else None,
            "removed": listed(result.left_out, 6) if result.left_out else None,
        }
    )


def _inputs(result: Any) -> Table:
    rows = [
        (
            one["adapter"],
            str(one["weight"]),
            ", ".join(f"{rank} ×{n}" for rank, n in one["ranks"].items()),
            ", ".join(one["trigger_words"]) or "none known",
        )
        for one in result.inputs
    ]
    return Table("Inputs", ("adapter", "weight", "rank", "trigger words"), rows)


def _relations(found: Any, names: list[str]) -> list[Part]:
    if found is None:
        return []
    values: list[list[float | None]] = [
        [1.0 if a == b else None for b in range(len(names))] for a in range(len(names))
    ]
    for pair in found.pairs:
        values[pair.a][pair.b] = values[pair.b][pair.a] = pair.cosine
    matrix = HeatMap(
        "Cosines of the inputs",
        "1 is the same direction, 0 unrelated, −1 opposite. The figure describes the weights; it does "
        "not predict images.",
        rows=names,
        columns=names,
        values=values,
        most=1.0,
        decimals=2,
    )
    bars = Bars(
        "Size of the change by block",
        "Norm (‖ΔW‖) of each weighted input, and of the result.",
        series=(*names, "result"),
        rows=[(part.name, (*part.inputs, part.result)) for part in found.blocks],
    )
    rest = [("note", f"not compared: {listed(list(found.skipped), 6)}")] if found.skipped else []
    return [*([matrix] if len(names) > 1 else []), bars, Notes(tuple(rest))]
