"""The command `resize`."""

from __future__ import annotations

from pathlib import Path

from loramerge.cli import show
from loramerge.cli.mix import error_lines
from loramerge.cli.options import verb_command
from loramerge.verbs.resize import Resize, Resized, ResizeResult


def render(result: ResizeResult) -> None:
    """Show one file in lines, several as a table."""
    if len(result.files) == 1 and result.files[0].status == "done":
        _one(result.files[0])
        return
    show.table(
        (
            (
                Path(file.path).name,
                file.status,
                f"{show.size(file.size_before)} to {show.size(file.size_after)}"
                if file.size_after
                else "",
                show.percent(file.norm_kept) if file.norm_kept is not None else "",
                f"{file.worst[0]} ({file.worst[1]:.3g})" if file.worst else "",
                file.reason or "",
            )
            for file in result.files
        ),
        ("file", "status", "size", "norm kept", "worst module", "why"),
    )
    counts: dict[str, int] = {}
    for file in result.files:
        counts[file.status] = counts.get(file.status, 0) + 1
    show.console().print(", ".join(f"{n} {status}" for status, n in counts.items()))


def _one(file: Resized) -> None:
    lines: list[tuple[str, str]] = [
        ("written", f"{file.output}"),
        ("size", f"{show.size(file.size_before)} to {show.size(file.size_after)}"),
        ("is", f"{file.dialect}, {file.dtype}"),
        ("rank", f"{show.ranks(file.ranks_before)} to {show.ranks(file.ranks_after)}"),
        *error_lines(
            bool(file.relative_error), file.relative_error or 0.0, file.norm_kept or 1.0, file.worst
        ),
    ]
    if file.left_out:
        lines.append(("left out", f"{len(file.left_out)} modules of rank 0"))
    show.table(lines)


command = verb_command(
    "resize",
    Resize,
    "loramerge.verbs.resize:resize",
    render,
    "loramerge resize --rank 8 character.safetensors",
    lambda result: result.exit_code,
    decomposes=True,
)
