"""The command `unbake`: take adapters out of a checkpoint."""

from __future__ import annotations

from loramerge.cli import dry_run, show
from loramerge.cli.command import verb_command
from loramerge.errors import listed
from loramerge.verbs.unbake import VERB, UnbakeResult


def render(result: UnbakeResult) -> None:
    """Show what was subtracted, and how exact the result is."""
    lines = dry_run.written(result)
    lines.append(("checkpoint", f"{show.place(result.checkpoint)} (family {result.family})"))
    lines += [
        ("subtracted", f"{show.place(a['path'])} {show.at(a['weight'])}") for a in result.adapters
    ]
    modules, tensors = show.count(result.modules, "module"), show.count(result.tensors, "tensor")
    lines.append(("changed", f"{modules}, stored in {tensors}"))
    if result.skipped:
        lines.append(("left out", f"{show.count(len(result.skipped), 'module')} that it lacks"))
    if result.base is not None:
        lines.append(
            (
                "restored",
                f"{result.restored} of {tensors} have the bytes of {show.place(result.base)} again",
            )
        )
    if result.change is not None:
        share = show.percent(result.change)
        lines.append(("size of change", f"{share} of the weights' norm"))
    if result.rounding is not None:
        lines.append(("rounding", f"{show.percent(result.rounding)} of the weights' norm, to "
                      f"{listed(result.dtypes)}; the bake rounded once, too"))  # fmt: skip
    if result.differing is not None and result.distance is not None:
        lines.append(("distance from base", _distance(result.differing, result.distance)))
    show.table(lines)
    if result.dry_run:
        dry_run.show_changes(result.touched)


def _distance(differing: int, distance: float) -> str:
    if not differing:
        return "none: every tensor is equal"
    tensors = show.count(differing, "tensor")
    return f"{show.percent(distance)} of the norm of the {tensors} that differ"


command = verb_command(
    VERB,
    render,
    "loramerge unbake my-model.safetensors --lora character:0.8 -o without.safetensors",
)
