"""The command `convert`: write adapters in another dialect or type, proven equal."""

from __future__ import annotations

from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.cli.files import files_render
from loramerge.steps.batch_result import FileOutcome
from loramerge.verbs.convert import VERB, ConvertResult


def _cells(found: ConvertResult, file: FileOutcome[ConvertResult]) -> tuple[str, ...]:
    sizes = f"{show.size(file.size_before)} to {show.size(found.size)}" if found.size else ""
    return sizes, f"{found.dialect}, {found.dtype}", _proof(found)


def _proof(found: ConvertResult) -> str:
    proof = found.proof
    if proof is None:
        return ""
    if proof.site is None:
        return f"{show.count(proof.sites, 'module')}, equal to the last bit"
    if proof.largest == 0.0:
        return f"{show.count(proof.sites, 'module')}, with the same change (ΔW)"
    return (
        f"{proof.same} of {show.count(proof.sites, 'module')} equal to the last bit, relative "
        f"difference of the others at most {proof.largest:.2g}"
    )


def render_one(found: ConvertResult) -> None:
    """Show the result for one adapter."""
    lines = show.written(found.output, f"{show.size(found.size_before)} to {show.size(found.size)}")
    if found.output is not None:
        lines.append(("format", f"{found.dialect}, {found.dtype}"))
    lines += [("modules", str(found.modules)), ("rank", show.ranks(found.ranks))]
    if found.kinds.keys() != found.kinds_before.keys():
        before, after = show.counted(found.kinds_before), show.counted(found.kinds)
        lines.append(("kind of modules", f"{after} (was {before})"))
    if found.dropped:
        lines.append(("dropped", show.count(len(found.dropped), "module")))
    if found.lossy:
        lines += show.errors(found.lossy, found.relative_error, found.norm_kept, found.worst)
    if found.left_out:
        lines.append(("removed", f"{show.count(len(found.left_out), 'module')} of rank 0"))
    if found.proof is not None:
        lines.append(("check", f"read back: {_proof(found)}"))
    show.table(lines)


render = files_render(render_one, ("size", "format", "read back"), _cells)
command = verb_command(
    VERB, render, "loramerge convert character.safetensors --for comfyui --dtype float16"
)
