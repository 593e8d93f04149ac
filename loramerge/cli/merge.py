"""The command `merge`: merge checkpoints of one family into one."""

from __future__ import annotations

from typing import Any

from loramerge.cli import dry_run, show
from loramerge.cli.command import verb_command
from loramerge.steps.merge_result import MergeResult
from loramerge.verbs.merge import VERB

_SHOWN = 40


def render(result: MergeResult) -> None:
    """Show what was or would be merged, how far each part moved, and what is kept after rounding."""
    layout = ", ".join(sorted(set(result.layouts.values())))
    lines = dry_run.written(result)
    scale = show.scale(result.scale, result.factors)
    lines.append(("method", f"{result.method}, scale {scale}"))
    lines += [("input", _given(one)) for one in result.models]
    lines += [
        ("added", f"{show.place(one['path'])} {show.at(one['weight'])}") for one in result.adapters
    ]
    if result.base is not None:
        lines.append(("base", show.place(result.base)))
    types = ", ".join(result.dtypes)
    lines += [
        ("family", f"{result.family}, layout {layout}"),
        (
            "would merge" if result.dry_run else "merged",
            f"{show.count(result.merged, 'tensor')}, computed and rounded to {types}"
            if result.merged
            else "nothing; each tensor is that of one input",
        ),
    ]
    if result.united:
        lines.append(("incomplete", f"{show.count(result.united, 'tensor')} that some input lacks"))
    for i, j, cosine in result.cosines:
        pair = f"{show.place(result.models[i]['path'])} and {show.place(result.models[j]['path'])}"
        lines.append(("cosine of changes", f"{cosine:.3f} between {pair}"))
    if result.survived is not None:
        lines.append(("accuracy", f"{show.percent(result.survived)} of the change kept after "
                      f"rounding, relative error {result.relative_error:.3g}"))  # fmt: skip
    lines += dry_run.estimated(result.estimated, "merge")
    if result.moved is not None:
        share = show.percent(result.moved)
        lines.append(("size of change", f"{share} of the norm of {show.place(result.reference)}"))
    show.table(lines)
    if result.dry_run:
        dry_run.show_changes(result.touched)
    rows = [(name, show.percent(moved)) for name, moved in result.blocks.items()]
    if rows:
        show.first_rows(rows, ("block", "size of change"), _SHOWN)


def _given(model: dict[str, Any]) -> str:
    """Return an input with its weight, or with its layers."""
    if "layers" in model:
        return f"{show.place(model['path'])}, layers {model['layers']}"
    return f"{show.place(model['path'])} {show.at(model['weight'])}"


command = verb_command(
    VERB, render, "loramerge merge sd21-custom:0.6 base.safetensors:0.4 -o merged.safetensors"
)
