"""The command `heal`: repair adapters: spikes, zero ranks, odd alphas, untrained modules."""

from __future__ import annotations

from typing import Any

from loramerge.algebra.health.healing import Repaired
from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.cli.files import files_render, show_left_out
from loramerge.errors import listed
from loramerge.steps.batch_result import FileOutcome, FilesResult
from loramerge.verbs.heal import VERB, HealResult

_MOST = 3  # modules of one repair that are named


def _cells(found: HealResult, file: FileOutcome[HealResult]) -> tuple[str, ...]:
    repairs = ", ".join(f"{name} ×{n}" for name, n in found.counts.items())
    sizes = f"{show.size(file.size_before)} to {show.size(found.size)}" if found.size else ""
    return sizes, repairs or "none needed"


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
        show.line("There was nothing to repair.")
    else:
        show.table(_rows(found.repairs), ("repair", "what was done", "ΔW of the module"))
    _show_left(found)


def _show_left(found: HealResult) -> None:
    """Show what was not repaired."""
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


_render_files = files_render(render_one, ("size", "repairs"), _cells)


def render(found: Any) -> None:
    """Show results of one file, of several, or of a file that needs no repair."""
    only = found.files[0] if isinstance(found, FilesResult) and len(found.files) == 1 else None
    if only is None or only.status != "skipped":
        _render_files(found)
        return
    assert only.result is not None
    show.table([("written", f"no file: {only.reason}"), ("modules", only.result.modules)])
    _show_left(only.result)
    show_left_out(found.not_adapters)


command = verb_command(VERB, render, "loramerge heal character.safetensors")
