"""The command `resize`: lower the ranks of adapters by SVD."""

from __future__ import annotations

from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.cli.files import files_render
from loramerge.cli.layout import shortened
from loramerge.steps.batch import FileOutcome
from loramerge.verbs.resize import VERB, ResizeResult

_NAME = 40  # characters of a name of a module in the table of several files


def _cells(found: ResizeResult, file: FileOutcome[ResizeResult]) -> tuple[str, ...]:
    return (
        f"{show.size(file.size_before)} to {show.size(found.size)}" if found.size else "",
        show.percent(found.norm_kept),
        f"{found.worst[1]:.3g} ({shortened(found.worst[0], _NAME)})" if found.worst else "",
    )


def render_one(found: ResizeResult) -> None:
    """Show the result for one adapter."""
    before = "" if found.size_before is None else f"{show.size(found.size_before)} to "
    lines = show.written(found.output, before + show.size(found.size))
    if found.output is not None:
        lines.append(("format", f"{found.dialect}, {found.dtype}"))
    exact = "no rank was lowered"
    lines += [
        ("rank", f"{show.ranks(found.ranks)} (was {show.ranks(found.ranks_before)})"),
        *show.errors(found.lossy, found.relative_error, found.norm_kept, found.worst, exact),
    ]
    if found.left_out:
        lines.append(("removed", f"{show.count(len(found.left_out), 'module')} of rank 0"))
    show.table(lines)


render = files_render(render_one, ("size", "norm kept", "largest relative error"), _cells)
command = verb_command(VERB, render, "loramerge resize --rank 8 character.safetensors")
