"""The command `mix`: combine adapters with weights, exactly."""

from __future__ import annotations

from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.verbs.mix import VERB, MixResult


def render(result: MixResult) -> None:
    """Show what was mixed."""
    lines = show.written(result.output, show.size(result.size))
    family = result.family or "unknown family"
    how = [] if result.output is None else [str(result.dialect), str(result.dtype)]
    lines += [
        ("is", ", ".join([*how, family])),
        ("modules", f"{result.modules}, rank {show.ranks(result.ranks)}"),
    ]
    lines += show.errors(result.lossy, result.relative_error, result.norm_kept, result.worst)
    if result.left_out:
        lines.append(("left out", f"{len(result.left_out)} modules of rank 0"))
    for one in result.inputs:
        words = ", ".join(one["trigger_words"]) or "none known"
        lines.append(("from", f"{one['adapter']} at {one['weight']}; trigger words: {words}"))
    show.table(lines)


command = verb_command(VERB, render, "loramerge mix style:0.7 character:0.3 --rank 16")
