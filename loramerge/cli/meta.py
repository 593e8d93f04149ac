"""The command `meta`: show or edit the metadata in a header."""

from __future__ import annotations

from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.verbs.meta import VERB, MetaResult

_WAS = 60  # characters of a former value, which may be a long list of tags


def render(result: MetaResult) -> None:
    """Show the metadata, or its changes."""
    if result.output is None:
        if not result.metadata:
            show.line("no metadata")
        show.table(sorted(result.metadata.items()))
        return
    word = "replaced" if result.output == result.path else "written"
    lines = [(word, result.output), ("size", show.size(result.size))]
    lines += [_change(key, *values) for key, values in result.changed.items()]
    show.table(lines)


def _change(key: str, before: str | None, after: str | None) -> tuple[str, str]:
    """Return the line of an entry that was set, changed or removed, with the value before."""
    was = "" if before is None else f" (was {_brief(before)})"
    if after is None:
        return "removed", f"{key}{was}"
    return "changed" if was else "set", f"{key} = {after}{was}"


def _brief(value: str) -> str:
    """Return a value in one short line."""
    line = " ".join(value.split()) or "empty"
    return line if len(line) <= _WAS else f"{line[:_WAS]}…"


command = verb_command(
    VERB, render, 'loramerge meta character.safetensors --set "modelspec.title=My character"'
)
