"""The command `bake`: add adapters to a checkpoint."""

from __future__ import annotations

from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.verbs.bake import VERB, BakeResult

_SHOWN = 12


def render(result: BakeResult) -> None:
    """Show what was baked, what survived, and how far the bases are apart."""
    layout = ", ".join(sorted(set(result.layouts.values())))
    word = "would write" if result.dry_run else "written"
    size = f" ({show.size(result.size)})" if result.size else ""
    lines: list[tuple[str, str]] = [
        (word, f"{result.output}{size}"),
        ("base", f"{result.base}: {result.family}, {layout}"),
        ("touches", f"{result.modules} modules in {result.tensors} tensors"),
    ]
    lines += [("adapter", f"{a['path']} at {a['weight']}") for a in result.adapters]
    if result.skipped:
        lines.append(("left out", f"{len(result.skipped)} modules that the base lacks"))
    if result.survived is not None:
        lines.append(
            ("survived", f"{show.percent(result.survived)} of the change, relative error "
             f"{result.relative_error:.3g}")
        )  # fmt: skip
    if result.worst is not None:
        lines.append(("worst", f"{result.worst[0]}: relative error {result.worst[1]:.3g}"))
    if result.change is not None:
        lines.append(("change", f"{show.percent(result.change)} of the touched weights"))
    show.table(lines)
    if result.dry_run:
        _dry(result)
    if result.drift is not None and result.drift_total is not None:
        _drift(result.drift, result.drift_total)


def _dry(result: BakeResult) -> None:
    rows = [
        (t["module"], t["tensor"], "×".join(map(str, t["shape"])), t["dtype"])
        for t in result.touched
    ]
    show.table(rows[:_SHOWN], ("module", "tensor", "shape", "type"))
    if len(rows) > _SHOWN:
        show.line(f"… and {len(rows) - _SHOWN} more; --json lists all")


def _drift(blocks: dict[str, tuple[float, float]], total: tuple[float, float]) -> None:
    rows = [
        (name, show.percent(distance), show.percent(subspace))
        for name, (distance, subspace) in blocks.items()
    ]
    rows.append(("all", show.percent(total[0]), show.percent(total[1])))
    show.table(
        rows,
        ("block", "base is away by", "inside the adapter's subspace by"),
        title="How far this base is from the one the adapter was trained on",
    )


command = verb_command(VERB, render, "loramerge bake --base sd21-custom --lora character:0.8")
