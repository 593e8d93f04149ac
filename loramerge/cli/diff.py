"""The command `diff`: compare two adapters, or two checkpoints."""

from __future__ import annotations

from typing import Any

from loramerge.algebra.moments import Moments
from loramerge.algebra.overlap import Overlap
from loramerge.cli import show
from loramerge.cli.bars import BarColumn
from loramerge.cli.command import verb_command
from loramerge.errors import listed
from loramerge.stream.gaps import Gap
from loramerge.verbs.diff import VERB, AdapterDiff, CheckpointDiff, DiffResult

_LONGEST = 60
_NAMED = 4  # tensors that are named
_LABELS = {"kinds": "kind of modules", "ranks": "rank", "dtypes": "type of numbers"}
_LEGEND = (
    "Cosine: 1 means the same direction, 0 unrelated. Distance: relative to the larger norm; 0 "
    "means equal. Best fit: the weight of A that comes closest to B. Norm: of the whole change "
    "(ΔW). Alignment: of the spaces of outputs or inputs, whichever is less, by principal angles "
    "weighted by energy (the cosine of ΔW ΔWᵀ, or of ΔWᵀ ΔW); 100 % means the same space with the "
    "same energies in it. The shared outputs and inputs of `mix --explain` are another figure: how "
    "much of both changes lies in directions that both use, however strong."
)
_LEGEND_OF_CHECKPOINTS = (
    "Distance: ‖B − A‖ relative to the larger norm, over the tensors that differ. Cosine: of the "
    "weights of these. Rounding: tensors that differ by no more than rounding to their types."
)


def render(result: DiffResult) -> None:
    """Show the verdict, what differs, and the figures per block."""
    show.table([("A", show.place(result.a)), ("B", show.place(result.b))])
    show.line(result.verdict)
    if isinstance(result, CheckpointDiff):
        _checkpoints(result)
    elif isinstance(result, AdapterDiff):
        _adapters(result)


def _adapters(result: AdapterDiff) -> None:
    facts = _facts(result)
    found = result.comparison
    norm_a, norm_b = (f"{energy**0.5:.4g}" for energy in (found.total.aa, found.total.bb))
    facts.append(("norm of change", norm_a, norm_b))
    show.table([row for row in facts if row[1] != row[2]], ("property", "A", "B"))
    for side, names in (("A", found.only_a), ("B", found.only_b)):
        if names:
            show.line(f"only in {side}: {listed(list(names), _NAMED)}")
    if found.skipped:
        show.line(f"not compared: {listed(list(found.skipped), _NAMED)}")
    rows = [
        _figures(name, moments, found.overlap(name)) for name, moments in found.blocks().items()
    ]
    rows.append(_figures("all shared modules", found.shared, found.overlap()))
    every = [*found.blocks().values(), found.shared]
    if found.total != found.shared:  # what one of them lacks counts as zero
        every.append(found.total)
        rows.append(_figures("all modules", found.total, Overlap()))
    distances = [moments.distance for moments in every]
    show.table(
        rows,
        ("block", "cosine", "distance", "best fit", "norm B/A", "alignment"),
        drawn=BarColumn("distance", distances, max(1.0, *distances)),
    )
    show.line(_LEGEND)


def _checkpoints(result: CheckpointDiff) -> None:
    found = result.likeness
    facts = [row for row in _facts(result) if row[1] != row[2]]
    show.table(facts, ("property", "A", "B"))
    for side, those in (("A", found.only_a), ("B", found.only_b)):
        for part, names in those.items():
            show.line(f"only in {side}, of {part}: {listed(names, _NAMED)}")
    if found.other_constants:
        show.line(f"constants that differ: {listed(found.other_constants, _NAMED)}")
    rounding = found.total.rounded == found.total.differing
    every = found.parts if rounding else found.blocks
    blocks = {name: gap for name, gap in every.items() if gap.differing}
    if not blocks:
        return
    rows = [_gap(name, gap) for name, gap in blocks.items()]
    if len(rows) > 1:
        rows.append(_gap("all of these", sum(blocks.values(), Gap())))
    show.table(
        rows,
        ("part" if rounding else "block", "tensors that differ", "rounding", "distance", "cosine"),
    )
    if equal := len(every) - len(blocks):
        noun = "part" if rounding else "block"
        show.line(f"Equal in every tensor: {show.count(equal, noun)}.")
    largest = found.largest
    if largest is not None:
        distance = show.percent(largest.gap.distance)
        show.line(f"Largest distance: {largest.site.name}, {distance}.")
    show.line(_LEGEND_OF_CHECKPOINTS)


def _gap(name: str, gap: Gap) -> tuple[str, ...]:
    return (
        name,
        f"{gap.differing} of {gap.tensors}",
        str(gap.rounded),
        show.percent(gap.distance),
        "–" if gap.cosine is None else f"{gap.cosine:.4f}",
    )


def _facts(result: DiffResult) -> list[tuple[str, str, str]]:
    facts = [
        (_LABELS.get(name, name), _fact(name, a), _fact(name, b))
        for name, (a, b) in result.facts.items()
    ]
    return facts + [
        (key, _cut(a), _cut(b)) for key, (a, b) in result.metadata.items() if key != "format"
    ]


def _fact(name: str, value: Any) -> str:
    if name == "size":
        return show.size(value)
    if not isinstance(value, dict):
        return str(value)
    numeric = all(isinstance(key, (int, float)) for key in value)
    return show.numbers(value) if numeric else show.counted(value)


def _cut(value: str | None) -> str:
    text = "–" if value is None else value
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _figures(name: str, moments: Moments, overlap: Overlap) -> tuple[str, ...]:
    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.4f}"

    spaces = [one for one in (overlap.outputs, overlap.inputs) if one is not None]
    return (
        name,
        shown(moments.cosine),
        shown(moments.distance),
        shown(moments.fit),
        shown(moments.ratio),
        f"{100 * min(spaces):.1f} %" if spaces else "–",
    )


command = verb_command(
    VERB, render, "loramerge diff character.safetensors character-r8.safetensors"
)
