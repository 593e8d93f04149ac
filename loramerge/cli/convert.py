"""The command `convert`: write adapters in another dialect or type, proven equal."""

from __future__ import annotations

from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.cli.files import files_render
from loramerge.steps.batch import FileOutcome
from loramerge.verbs.convert import VERB, ConvertResult


def _cells(found: ConvertResult, file: FileOutcome[ConvertResult]) -> tuple[str, ...]:
    sizes = f"{show.size(file.size_before)} to {show.size(found.size)}" if found.size else ""
    return sizes, f"{found.dialect}, {found.dtype}", _proof(found)


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
        lines += show.errors(found.lossy, found.relative_error, found.norm_kept, found.worst)
    if found.left_out:
        lines.append(("left out", f"{len(found.left_out)} modules of rank 0"))
    if found.proof is not None:
        lines.append(("read back", _proof(found)))
    show.table(lines)


render = files_render(render_one, ("size", "is", "proof"), _cells)
command = verb_command(
    VERB, render, "loramerge convert character.safetensors --for comfyui --dtype float16"
)
