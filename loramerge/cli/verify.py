"""The command `verify`: check whether a file holds what its recipe says."""

from __future__ import annotations

from loramerge.algebra.compare import in_order
from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.steps.claims import CheckpointContents
from loramerge.verbs.verify import VERB, VerifyResult

_MOST = 40  # blocks that are listed
_LEGEND = (
    "Below an adapter: its strength in the block, relative to the weight that it should have (to 1 if "
    "none is given), by least squares. Unexplained: norm of what the adapters do not explain at any "
    "strength, rounding included, relative to the whole change of these modules."
)


def render(result: VerifyResult) -> None:
    """Show the verdict, sentence by sentence, and the strengths by block."""
    rows = [("file", show.place(result.path))]
    if result.base is not None:
        rows.append(("base", show.place(result.base)))
    show.table([*rows, ("checked", _source(result))])
    for number, sentence in enumerate(result.sentences()):
        show.line(sentence, bold=not number)
    for note in result.notes:
        show.line(f"note: {note}")
    if result.contents is not None:
        _blocks(result.contents, explained=not result.holds)


def _source(result: VerifyResult) -> str:
    if result.source == "given":
        return "the adapters given"
    return f"the recipe in its header ({result.source})"


def _blocks(found: CheckpointContents, *, explained: bool) -> None:
    """Show the strength of each adapter in each block, and what the figures mean if that matters."""
    names = in_order(dict.fromkeys(name for one in found.found for name in one.blocks))
    rows, unchanged = [], 0
    for name in names:
        blocks = [one.blocks.get(name) for one in found.found]
        count = max(block.modules for block in blocks if block is not None)
        rest = max(block.rest for block in blocks if block is not None)
        if not rest and all(block is None or block.strength is None for block in blocks):
            unchanged += 1
            continue
        rows.append((name, str(count), *map(_strength, blocks), show.percent(rest)))
    if not rows:
        return
    labels = [one.claim.label for one in found.found]
    show.table(rows[:_MOST], ("block", "modules", *labels, "unexplained"))
    if unchanged:
        show.line(f"Not changed, as it should be: {show.count(unchanged, 'block')}.")
    if len(rows) > _MOST:
        show.line(f"… and {len(rows) - _MOST} more blocks; --json lists all of them")
    if explained:
        show.line(_LEGEND)


def _strength(block: object) -> str:
    strength = getattr(block, "strength", None)
    return "–" if strength is None else f"{round(strength, 3) + 0.0:.3f}"


command = verb_command(VERB, render, "loramerge verify mixed.safetensors")
