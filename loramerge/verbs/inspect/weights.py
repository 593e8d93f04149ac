"""The facts about one adapter that need its weights, or a base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from loramerge.adapter import Adapter, Problem
from loramerge.adapter.readers import Reading
from loramerge.algebra.health import LIMITS, examine
from loramerge.algebra.health.strength import (
    mean_norm,
    strength_findings,
    usual_change,
    usual_norm,
)
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.errors import LoramergeError
from loramerge.steps.inputs import base_path
from loramerge.steps.parameters import Context
from loramerge.stream.bake import survey
from loramerge.stream.elsewhere import distances
from loramerge.stream.intruders import intruders
from loramerge.stream.plan import plan_bake
from loramerge.stream.survival import Survival
from loramerge.verbs.inspect.facts import Inspect, Inspected

__all__ = ["add_base", "add_strength", "add_weights"]

_STRONGEST = 3  # modules that are named


def add_weights(found: Inspected, adapter: Adapter, parameters: Inspect, context: Context) -> None:
    """Add what the weights say."""
    spectra = parameters.spectrum or context.details
    report = examine(adapter, spectra=spectra, threads=context.threads, notify=context.notify)
    found.checked = "weights"
    found.findings += report.problems
    found.norm = report.norm
    found.mean_norm = mean_norm(report.table)
    found.measured = report.table
    if parameters.modules or parameters.spectrum:
        found.table = [
            {name: value for name, value in row.items() if name != "singular_values"}
            for row in report.table
        ]


def add_base(
    found: Inspected, adapter: Adapter, base: str, seen: Sequence[Reading], context: Context
) -> None:
    """Add a verdict on whether the adapter works with a base, and how far programs are from it."""
    checkpoint = open_checkpoint(base_path(base, context))
    found.base = {"path": str(checkpoint.path), "family": checkpoint.family_name}
    try:
        plan = plan_bake(checkpoint, [(adapter, Weight())], skip_missing=("all",))
    except LoramergeError as error:
        found.base |= {"works": False, "reason": error.problem, "matched": 0}
        return
    found.base["elsewhere"] = distances(adapter, checkpoint, seen)
    for title, off in found.base["elsewhere"].items():
        found.loads_otherwise[title] += f"; off by {off:.2g} of the trained change"
    survivals = survey(plan, threads=context.threads, notify=context.notify)
    asked = sum(s.asked for s in survivals)
    kept = sum(s.along for s in survivals) / asked if asked else 1.0
    weights = sum(s.base for s in survivals)
    total = len(adapter.deltas)
    matched = total - len(plan.skipped)
    by_name = ", by name, as no family is known" if checkpoint.is_unknown else ""
    reason = (
        f"{matched} of {total} modules fit{by_name}; {100 * kept:.3g} % of the change is kept after "
        "rounding to the base's type"
    )
    found.base |= {
        "works": bool(matched),
        "matched": matched,
        "modules": total,
        "skipped": plan.skipped,
        "change": (asked / weights) ** 0.5 if weights else None,
        "survives": kept,
        "reason": reason,
        **_strongest(survivals),
    }
    new = intruders(adapter, checkpoint, threads=context.threads, notify=context.notify)
    found.base["intruders"] = {site.name: number for site, number in new.counts.items() if number}
    found.base["intruder_share"] = new.share
    found.findings += _intruding(new.share)


def add_strength(found: Inspected) -> None:
    """Add how strong adapters of the family usually are, and a finding if this one is far from it."""
    family, change = found.family, None
    if found.base is not None and found.base["works"]:
        family, change = found.base["family"], found.base["change"]
        found.base["usual_change"] = usual_change(family)
    found.usual_norm = usual_norm(family)
    found.findings += strength_findings(family, norm=found.mean_norm, change=change)


def _strongest(survivals: Sequence[Survival]) -> dict[str, Any]:
    """Return ‖ΔW‖/‖W‖ of the components, and of the modules where it is largest."""
    sums: dict[str, list[float]] = {}
    for one in survivals:
        if one.module:
            entry = sums.setdefault(one.module.partition(".")[0], [0.0, 0.0])
            entry[0] += one.asked
            entry[1] += one.base
    modules = sorted(
        (
            ((one.asked / one.base) ** 0.5, one.module)
            for one in survivals
            if one.base and one.module
        ),
        reverse=True,
    )
    return {
        "components": {name: (a / b) ** 0.5 for name, (a, b) in sums.items() if b},
        "strongest": [[module, share] for share, module in modules[:_STRONGEST]],
    }


def _intruding(share: float) -> Iterator[Problem]:
    if share >= LIMITS["intruders"].value:
        yield Problem(
            "note",
            "intruders",
            None,
            f"{100 * share:.0f} % of the leading directions of the changed weights are new to the base",
            "the base forgets other subjects; a smaller weight, or fewer steps of training, keeps them",
        )
