"""The command `mix`: combine adapters with weights, exactly."""

from __future__ import annotations

from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.verbs.mix import VERB, MixResult


def render(result: MixResult) -> None:
    """Show what was mixed."""
    lines = show.written(result.output, show.size(result.size))
    literal = result.scale == "literal"
    exact = "exact sum" if result.method == "linear" and literal else "not truncated"
    if result.compat is not None:
        exact = f"as merged by {result.compat}"
    if result.output is not None:
        lines.append(("format", f"{result.dialect}, {result.dtype}"))
        exact = f"{exact}, rounded to {result.dtype}"
    if result.method != "linear" or not literal:
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


def _method(result: MixResult) -> str:
    """Return the operator, and what its results were multiplied by."""
    least, most = result.factors
    factors = f"×{least:.3g}" if least == most else f"×{least:.3g} to ×{most:.3g}"
    return f"{result.method}, scale {result.scale}{'' if least == most == 1 else f' ({factors})'}"


command = verb_command(VERB, render, "loramerge mix style:0.7 character:0.3 --rank 16")
