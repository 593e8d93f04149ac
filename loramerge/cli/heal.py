"""The command `heal`: repair adapters: spikes, zero ranks, odd alphas, untrained modules."""

from __future__ import annotations

from loramerge.algebra.health.healing import Repaired
from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.cli.files import files_render
from loramerge.errors import listed
from loramerge.steps.batch_result import FileOutcome
from loramerge.verbs.heal import VERB, HealResult

_MOST = 3  # modules of one repair that are named


def _cells(found: HealResult, file: FileOutcome[HealResult]) -> tuple[str, ...]:
    repairs = ", ".join(f"{name} ×{n}" for name, n in found.counts.items())
    return f"{show.size(file.size_before)} to {show.size(found.size)}", repairs or "none needed"


def render_one(found: HealResult) -> None:
    """Show the repairs of one adapter."""
    before = "" if found.size_before is None else f"{show.size(found.size_before)} to "
    lines = show.written(found.output, before + show.size(found.size))
    lines.append(("modules", str(found.modules)))
    if found.proof is not None:
        same = found.proof.same
        lines.append(
            ("check", f"read back: {same} of {show.count(found.proof.sites, 'module')} equal to the "
             "last bit, the others but for rounding" if found.proof.site is not None else
             f"read back: {show.count(found.proof.sites, 'module')}, equal to the last bit")
        )  # fmt: skip
    show.table(lines)
    if not found.repairs:
        show.line("Nothing needed to be repaired.")
    else:
        show.table(_rows(found.repairs), ("repair", "what was done", "ΔW of the module"))
    left = sorted({f"{p.code} ({p.severity})" for p in found.findings})
    if left:
        show.line(
            f"Not repaired: {listed(left, 6)}. `loramerge inspect --deep FILE` explains them."
        )


def _rows(repairs: list[Repaired]) -> list[tuple[str, str, str]]:
    """Return a row for each repair; of those that differ only in figures, the first is shown."""
    groups: dict[tuple[str, bool, str], list[Repaired]] = {}
    for one in repairs:
        groups.setdefault((one.repair, one.exact, one.words.partition(":")[0][:12]), []).append(one)
    rows = []
    for (name, exact, _), those in groups.items():
        names = [one.module for one in those]
        if len({one.words for one in those}) > 1:
            rest = f"; and {len(names) - 1} more such modules: {listed(names[1:], 2)}"
            text = f"{those[0].words}: {names[0]}{rest}"
        else:
            text = f"{those[0].words}: {listed(names, _MOST)}"
        rows.append((name, text, "the same" if exact else "changed"))
    return rows


render = files_render(render_one, ("size", "repairs"), _cells)
command = verb_command(VERB, render, "loramerge heal character.safetensors -o healed.safetensors")
