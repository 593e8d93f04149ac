"""The command `extract`: make an adapter of the difference of two checkpoints."""

from __future__ import annotations

from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.errors import listed
from loramerge.verbs.extract import VERB, ExtractResult


def render(result: ExtractResult) -> None:
    """Show what was extracted, how much of the difference that is, and what was left out."""
    lines = show.written(result.output, show.size(result.size))
    if result.output is not None:
        lines.append(("format", f"{result.dialect}, {result.dtype}"))
    lines += [
        ("family", result.family or "unknown"),
        ("modules", str(result.modules)),
        ("rank", show.ranks(result.ranks)),
        ("captured", f"{show.percent(result.captured)} of the squared norm of the difference"),
        *show.errors(
            result.lossy, result.relative_error, result.norm_kept, result.worst, "exact differences"
        ),
    ]
    if result.unchanged:
        lines.append(
            ("unchanged", show.count(result.unchanged, "weight or bias", "weights and biases"))
        )
    if result.rounding:
        to = f" to {listed(result.rounded_to)}" if result.rounded_to else ""
        lines.append(("left out", f"{show.count(len(result.rounding), 'module')} that differ by "
                      f"rounding{to} alone"))  # fmt: skip
    for what, found in result.not_kept.items():
        share = show.percent(found["share"])
        lines.append(("left out", f"{what} ({found['count']}): {share} of the squared norm"))
    if result.left_out:
        lines.append(("removed", f"{show.count(len(result.left_out), 'module')} of rank 0"))
    show.table(lines)


command = verb_command(
    VERB, render, "loramerge extract --tuned my-model.safetensors --base sd21-custom --rank 64"
)
