"""The command `bake`: add adapters to a checkpoint."""

from __future__ import annotations

from typing import Any

from loramerge.cli import dry_run, show
from loramerge.cli.command import verb_command
from loramerge.verbs.bake import VERB, BakeResult


def render(result: BakeResult) -> None:
    """Show the baked modules, the part kept after rounding, and the distance of the bases."""
    layout = ", ".join(sorted(set(result.layouts.values())))
    lines = dry_run.written(result)
    modules, tensors = show.count(result.modules, "module"), show.count(result.tensors, "tensor")
    lines += [
        ("base", f"{show.place(result.base)} (family {result.family}, layout {layout})"),
        *(("adapter", f"{show.place(a['path'])} {show.at(a['weight'])}") for a in result.adapters),
    ]
    if result.modules or result.storage is None:
        word = "would change" if result.dry_run else "changed"
        lines.append((word, f"{modules}, stored in {tensors}"))
    if result.storage is not None:
        lines += _storage(result.storage)
    if result.skipped:
        lines.append(
            ("left out", f"{show.count(len(result.skipped), 'module')} that the base lacks")
        )
    if result.survived is not None:
        types = ", ".join(result.dtypes)
        lines.append(("accuracy", f"{_kept(result.survived)} of the change kept after rounding to "
                      f"{types}, relative error {result.relative_error:.3g}"))  # fmt: skip
    if result.worst is not None:
        lines.append(("worst module", f"{result.worst[0]}: relative error {result.worst[1]:.3g}"))
    lines += dry_run.estimated(result.estimated, "bake")
    if result.change is not None:
        share = show.percent(result.change)
        lines.append(("size of change", f"{share} of the original weights' norm"))
    show.table(lines)
    if result.dry_run:
        dry_run.show_changes(result.touched)
    if result.drift is not None and result.drift_total is not None:
        _drift(result.drift, result.drift_total)


def _storage(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines about the forms that tensors get, and about the error of rounding to them."""
    forms = [f"{show.count(count, 'tensor')} as {name}" for name, count in found["tensors"].items()]
    lines = [("stored anew", ", ".join(forms) or "nothing")]
    if found["relative_error"] is not None:
        error = f"{show.percent(found['relative_error'])} of the weights' norm"
        lines.append(("rounding error", error))
    return lines


def _kept(share: float) -> str:
    """Return the share of the change that remains; one that is not exact never reads 100 %."""
    return "> 99.99 %" if 0.9999 <= share < 1 else show.percent(share)


def _drift(blocks: dict[str, tuple[float, float]], total: tuple[float, float]) -> None:
    rows = [
        (name, show.percent(distance), show.percent(subspace))
        for name, (distance, subspace) in blocks.items()
    ]
    rows.append(("all", show.percent(total[0]), show.percent(total[1])))
    show.table(
        rows,
        ("block", "distance", "inside the adapter's subspace"),
        title="Distance from the base that the adapter was trained on",
    )


command = verb_command(VERB, render, "loramerge bake --base sd21-custom --lora character:0.8")
