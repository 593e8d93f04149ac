"""Show how the inputs of a mix relate: what `mix --explain` and `plan --explain` print."""

from __future__ import annotations

from collections.abc import Sequence

from loramerge.algebra.interference import Interference
from loramerge.cli import show
from loramerge.cli.bars import BarColumn
from loramerge.errors import listed

__all__ = ["show_interference"]

_LEGEND = (
    "Cosine: 1 is the same direction, 0 unrelated, -1 opposite. Shared outputs and inputs: how much of "
    "the two changes (of ‖ΔW‖²) lies in directions that both use; in brackets what unrelated adapters "
    "of these ranks share. Ratio: the norm of the result over that of unrelated inputs; 1.41 is two "
    "equal inputs, 0 two that cancel. These figures describe the weights; they do not predict images."
)


def show_interference(found: Interference, names: Sequence[str]) -> None:
    """Show the relations of the inputs."""
    rows = [
        (
            f"{names[pair.a]} and {names[pair.b]}",
            str(pair.modules),
            _decimals(pair.cosine),
            _share(pair.outputs, pair.outputs_by_chance),
            _share(pair.inputs, pair.inputs_by_chance),
        )
        for pair in found.pairs
    ]
    if rows:
        show.table(rows, ("pair", "modules", "cosine", "shared outputs", "shared inputs"))
    parts = [
        (
            part.name,
            *(f"{norm:.4g}" for norm in part.inputs),
            f"{part.result:.4g}",
            _decimals(part.ratio),
        )
        for part in (*found.blocks, found.total)
    ]
    show.table(
        parts,
        ("block", *(f"norm {name}" for name in names), "norm result", "ratio"),
        drawn=BarColumn("result", [*(part.result for part in found.blocks), None]),
    )
    if found.skipped:
        show.line(f"not compared: {listed(list(found.skipped), 4)}")
    show.line(_LEGEND)


def _decimals(value: float | None) -> str:
    return "–" if value is None else f"{value + 0.0:z.2f}"


def _share(value: float | None, by_chance: float | None) -> str:
    if value is None or by_chance is None:
        return "–"
    return f"{100 * value:.1f} % ({100 * min(1.0, by_chance):.1f} %)"
