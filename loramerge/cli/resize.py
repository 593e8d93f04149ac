"""The command `resize`: lower the ranks of adapters by SVD."""

from __future__ import annotations

from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.cli.files import files_render
from loramerge.steps.batch import FileOutcome
from loramerge.verbs.resize import VERB, ResizeResult


def _cells(found: ResizeResult, file: FileOutcome[ResizeResult]) -> tuple[str, ...]:
    return (
        f"{show.size(file.size_before)} to {show.size(found.size)}" if found.size else "",
        show.percent(found.norm_kept),
        f"{found.worst[0]} ({found.worst[1]:.3g})" if found.worst else "",
    )


def render_one(found: ResizeResult) -> None:
    """Show what became of one adapter."""
    before = "" if found.size_before is None else f"{show.size(found.size_before)} to "
    lines = show.written(found.output, before + show.size(found.size))
    if found.output is not None:
        lines.append(("is", f"{found.dialect}, {found.dtype}"))
    lines += [
        ("rank", f"{show.ranks(found.ranks_before)} to {show.ranks(found.ranks)}"),
        *show.errors(found.lossy, found.relative_error, found.norm_kept, found.worst),
    ]
    if found.left_out:
        lines.append(("left out", f"{len(found.left_out)} modules of rank 0"))
    show.table(lines)


render = files_render(render_one, ("size", "norm kept", "worst module"), _cells)
command = verb_command(VERB, render, "loramerge resize --rank 8 character.safetensors")
