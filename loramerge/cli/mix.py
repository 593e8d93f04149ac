"""The command `mix`: combine adapters with weights, exactly."""

from __future__ import annotations

from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.cli.interference import show_interference
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
        lost = f"; relative error {one['relative_error']:.4g}" if "relative_error" in one else ""
        lines.append(
            ("input", f"{one['adapter']} {show.at(one['weight'])}{lost}; trigger words: {words}")
        )
    show.table(lines)
    if result.interference is not None:
        show_interference(result.interference, [one["adapter"] for one in result.inputs])


def _method(result: MixResult) -> str:
    """Return the operator and the factors of its final scale."""
    method = result.method
    if result.correction is not None:
        method = f"{method}, corrected by {result.correction}"
    return f"{method}, scale {show.scale(result.scale, result.factors)}"


command = verb_command(VERB, render, "loramerge mix style:0.7 character:0.3 --rank 16")
