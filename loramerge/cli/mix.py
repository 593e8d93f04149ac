"""The command `mix`: combine adapters with weights, exactly."""

from __future__ import annotations

from loramerge.algebra.interference import Interference
from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.errors import listed
from loramerge.verbs.mix import VERB, MixResult


def render(result: MixResult) -> None:
    """Show the mixed adapters and the result."""
    lines = show.written(result.output, show.size(result.size))
    literal = result.scale == "literal"
    plain = result.method == "linear" and literal and result.correction is None
    exact = "exact sum" if plain else "not truncated"
    if result.compat is not None:
        exact = f"as merged by {result.compat}"
    if result.output is not None:
        lines.append(("format", f"{result.dialect}, {result.dtype}"))
        exact = f"{exact}, rounded to {result.dtype}"
    if not plain:
        lines.append(("method", _method(result)))
    lines += [
        ("family", result.family or "unknown"),
        ("modules", str(result.modules)),
        ("rank", show.ranks(result.ranks)),
        *show.errors(result.lossy, result.relative_error, result.norm_kept, result.worst, exact),
    ]
    if result.left_out:
        lines.append(("removed", f"{show.count(len(result.left_out), 'module')} of rank 0"))
    for one in result.inputs:
        words = ", ".join(one["trigger_words"]) or "none known"
        lines.append(
            ("input", f"{one['adapter']} at weight {one['weight']}; trigger words: {words}")
        )
    show.table(lines)
    if result.interference is not None:
        _explain(result.interference, [one["adapter"] for one in result.inputs])


_LEGEND = (
    "Cosine: 1 is the same direction, 0 unrelated, -1 opposite. Shared outputs and inputs: how much of "
    "the two changes (of ‖ΔW‖²) lies in directions that both use; in brackets what unrelated adapters "
    "of these ranks share. Ratio: the norm of the result over that of unrelated inputs; 1.41 is two "
    "equal inputs, 0 two that cancel. These figures describe the weights; they do not predict images."
)


def _explain(found: Interference, names: list[str]) -> None:
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
    show.table(parts, ("block", *(f"norm {name}" for name in names), "norm result", "ratio"))
    if found.skipped:
        show.line(f"not compared: {listed(list(found.skipped), 4)}")
    show.line(_LEGEND)


def _decimals(value: float | None) -> str:
    return "–" if value is None else f"{value + 0.0:z.2f}"


def _share(value: float | None, by_chance: float | None) -> str:
    if value is None or by_chance is None:
        return "–"
    return f"{100 * value:.1f} % ({100 * min(1.0, by_chance):.1f} %)"


def _method(result: MixResult) -> str:
    """Return the operator and the factors of its final scale."""
    least, most = result.factors
    factors = f"×{least:.3g}" if least == most else f"×{least:.3g} to ×{most:.3g}"
    method = result.method
    if result.correction is not None:
        method = f"{method}, corrected by {result.correction}"
    return f"{method}, scale {result.scale}{'' if least == most == 1 else f' ({factors})'}"


command = verb_command(VERB, render, "loramerge mix style:0.7 character:0.3 --rank 16")
