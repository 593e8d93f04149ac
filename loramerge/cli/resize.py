"""The command `resize`."""

from __future__ import annotations

from pathlib import Path

from loramerge.cli import show
from loramerge.cli.mix import error_lines
from loramerge.cli.options import verb_command
from loramerge.verbs.batch import FileOutcome, FilesResult
from loramerge.verbs.resize import ResizeFiles, ResizeResult


def render(result: FilesResult[ResizeResult]) -> None:
    """Show one file in lines, several as a table."""
    if len(result.files) == 1 and result.files[0].status == "done":
        found = result.files[0].result
        assert found is not None
        render_one(found)
        return
    show.table(
        (_row(file) for file in result.files),
        ("file", "status", "size", "norm kept", "worst module", "why"),
    )
    counts: dict[str, int] = {}
    for file in result.files:
        counts[file.status] = counts.get(file.status, 0) + 1
    show.console().print(", ".join(f"{n} {status}" for status, n in counts.items()))


def _row(file: FileOutcome[ResizeResult]) -> tuple[str, ...]:
    name, found = Path(file.path).name, file.result
    if found is None:
        return name, file.status, "", "", "", file.reason or ""
    return (
        name,
        file.status,
        f"{show.size(file.size_before)} to {show.size(found.size)}" if found.size else "",
        show.percent(found.norm_kept),
        f"{found.worst[0]} ({found.worst[1]:.3g})" if found.worst else "",
        file.reason or "",
    )


def render_one(found: ResizeResult) -> None:
    """Show what became of one adapter."""
    before = "" if found.size_before is None else f"{show.size(found.size_before)} to "
    lines = show.written(found.output, before + show.size(found.size))
    if found.output is not None:
        lines.append(("is", f"{found.dialect}, {found.dtype}"))
    lines += [
        ("rank", f"{show.ranks(found.ranks_before)} to {show.ranks(found.ranks)}"),
        *error_lines(found.lossy, found.relative_error, found.norm_kept, found.worst),
    ]
    if found.left_out:
        lines.append(("left out", f"{len(found.left_out)} modules of rank 0"))
    show.table(lines)


command = verb_command(
    "resize",
    ResizeFiles,
    "loramerge.verbs.resize:resize_files",
    render,
    "loramerge resize --rank 8 character.safetensors",
    lambda result: result.exit_code,
    decomposes=True,
    writes=True,
    steps=lambda asked, result: [
        ("resize", asked.of(Path(file.path)), file.result)
        for file in result.files
        if file.status == "done"
    ],
)
