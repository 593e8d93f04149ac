"""The command `meta`: show or edit the metadata in a header."""

from __future__ import annotations

from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.verbs.meta import VERB, MetaResult


def render(result: MetaResult) -> None:
    """Show the metadata, or its changes."""
    if result.output is None:
        if not result.metadata:
            show.line("no metadata")
        show.table(sorted(result.metadata.items()))
        return
    lines: list[tuple[str, str]] = show.written(result.output, show.size(result.size))
    for key, (_, after) in result.changed.items():
        lines.append(("removed", key) if after is None else ("set", f"{key} = {after}"))
    show.table(lines)


command = verb_command(
    VERB, render, 'loramerge meta character.safetensors --set "modelspec.title=My character"'
)
