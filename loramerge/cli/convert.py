"""The command `convert`."""

from __future__ import annotations

from pathlib import Path

from loramerge.cli import show
from loramerge.cli.mix import error_lines
from loramerge.cli.options import verb_command
from loramerge.verbs.batch import FileOutcome, FilesResult
from loramerge.verbs.convert import ConvertFiles, ConvertResult


def render(result: FilesResult[ConvertResult]) -> None:
    """Show one file in lines, several as a table."""
    if len(result.files) == 1 and result.files[0].status == "done":
        found = result.files[0].result
        assert found is not None
        render_one(found)
        return
    show.table(
        (_row(file) for file in result.files), ("file", "status", "size", "is", "proof", "why")
    )
    counts: dict[str, int] = {}
    for file in result.files:
        counts[file.status] = counts.get(file.status, 0) + 1
    show.console().print(", ".join(f"{n} {status}" for status, n in counts.items()))


def _row(file: FileOutcome[ConvertResult]) -> tuple[str, ...]:
    name, found = Path(file.path).name, file.result
    if found is None:
        return name, file.status, "", "", "", file.reason or ""
    sizes = f"{show.size(file.size_before)} to {show.size(found.size)}" if found.size else ""
    is_now = f"{found.dialect}, {found.dtype}"
    return name, file.status, sizes, is_now, _proof(found), file.reason or ""


def _proof(found: ConvertResult) -> str:
    proof = found.proof
    if proof is None:
        return ""
    if proof.site is None:
        return f"all {proof.sites} modules are equal to the last bit"
    return (
        f"{proof.same} of {proof.sites} modules are equal to the last bit, the others to "
        f"{proof.largest:.2g}"
    )


def render_one(found: ConvertResult) -> None:
    """Show what became of one adapter."""
    lines = show.written(found.output, f"{show.size(found.size_before)} to {show.size(found.size)}")
    if found.output is not None:
        lines.append(("is", f"{found.dialect}, {found.dtype}"))
    lines.append(("modules", f"{found.modules}, rank {show.ranks(found.ranks)}"))
    if found.kinds != found.kinds_before:
        before, after = show.counted(found.kinds_before), show.counted(found.kinds)
        lines.append(("kinds", f"{before} to {after}"))
    if found.dropped:
        lines.append(("dropped", f"{len(found.dropped)} modules"))
    if found.lossy:
        lines += error_lines(found.lossy, found.relative_error, found.norm_kept, found.worst)
    if found.left_out:
        lines.append(("left out", f"{len(found.left_out)} modules of rank 0"))
    if found.proof is not None:
        lines.append(("read back", _proof(found)))
    show.table(lines)


command = verb_command(
    "convert",
    ConvertFiles,
    "loramerge.verbs.convert:convert_files",
    render,
    "loramerge convert character.safetensors --for comfyui --dtype float16",
    lambda result: result.exit_code,
    decomposes=True,
    writes=True,
    steps=lambda asked, result: [
        ("convert", asked.of(Path(file.path)), file.result)
        for file in result.files
        if file.status == "done"
    ],
)
