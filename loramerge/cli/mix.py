"""The command `mix`: combine adapters with weights, exactly."""

from __future__ import annotations

from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.verbs.mix import VERB, MixResult


def render(result: MixResult) -> None:
    """Show what was mixed."""
    lines = show.written(result.output, show.size(result.size))
    exact = "exact sum" if result.compat is None else f"what {result.compat} makes of them"
    if result.output is not None:
        lines.append(("format", f"{result.dialect}, {result.dtype}"))
        exact += f", rounded to {result.dtype}"
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


command = verb_command(VERB, render, "loramerge mix style:0.7 character:0.3 --rank 16")
