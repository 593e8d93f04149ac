"""The command `diff`: compare the changes of two adapters."""

from __future__ import annotations

from typing import Any

from loramerge.algebra.moments import Moments
from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.errors import listed
from loramerge.verbs.diff import VERB, DiffResult

_LONGEST = 60
_LABELS = {"kinds": "kind of modules", "ranks": "rank", "dtypes": "type of numbers"}
_LEGEND = (
    "Cosine: 1 means the same direction, 0 unrelated. Distance: relative to the larger norm; 0 "
    "means equal. Best fit: the weight of A that comes closest to B. Norm: of the whole change "
    "(ΔW)."
)
_SPACES = (
    "Overlap: by the principal angles between the two, weighted by energy. 100 % means the same "
    "space with the same energies."
)


def render(result: DiffResult) -> None:
    """Show the verdict, what differs, and the figures per block."""
    show.table([("A", result.a), ("B", result.b)])
    show.line(result.verdict)
    facts = [(_LABELS.get(name, name), _fact(a), _fact(b)) for name, (a, b) in result.facts.items()]
    facts += [(key, _cut(a), _cut(b)) for key, (a, b) in result.metadata.items() if key != "format"]
    show.table([row for row in facts if row[1] != row[2]], ("property", "A", "B"))
    found = result.comparison
    for side, names in (("A", found.only_a), ("B", found.only_b)):
        if names:
            show.line(f"only in {side}: {listed(list(names), 4)}")
    if found.skipped:
        show.line(f"not compared: {listed(list(found.skipped), 4)}")
    rows = [_figures(name, moments) for name, moments in found.blocks().items()]
    rows.append(_figures("all shared modules", found.shared))
    show.table(rows, ("block", "cosine", "distance", "best fit", "norm A", "norm B"))
    show.line(_LEGEND)
    overlap = found.overlap()
    if overlap.outputs is not None and overlap.inputs is not None:
        row = (show.percent(overlap.outputs), show.percent(overlap.inputs))
        show.table([("overlap of spaces", *row)], ("", "outputs", "inputs"))
        show.line(_SPACES)


def _fact(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    numeric = all(isinstance(key, (int, float)) for key in value)
    return show.numbers(value) if numeric else show.counted(value)


def _cut(value: str | None) -> str:
    text = "–" if value is None else value
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _figures(name: str, moments: Moments) -> tuple[str, ...]:
    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.4f}"

    return (
        name,
        shown(moments.cosine),
        shown(moments.distance),
        shown(moments.fit),
        f"{moments.aa**0.5:.4g}",
        f"{moments.bb**0.5:.4g}",
    )


command = verb_command(
    VERB, render, "loramerge diff character.safetensors character-r8.safetensors"
)
