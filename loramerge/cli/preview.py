"""The command `preview`: generate images with adapters, side by side."""

from __future__ import annotations

from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.verbs.preview import VERB, PreviewResult


def render(result: PreviewResult) -> None:
    """Show the generated images."""
    show.table([("written", name) for name in result.outputs])
    show.table(
        [(label, f"{change:.2f}") for label, change in zip(result.columns, result.changes, strict=True)],
        ("column", "mean difference from the base (0 to 255)"),
    )  # fmt: skip
    show.table(
        [(name, f"nearest to {column}: mean difference {apart:.2f}")
         for name, (column, apart) in result.like.items()]
    )  # fmt: skip


command = verb_command(
    VERB, render, "loramerge preview --base tiny zuzu:0.8 --prompt 'zuzu, red' --steps 2"
)
