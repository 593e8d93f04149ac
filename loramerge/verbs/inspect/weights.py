"""The facts about one adapter that need its weights, or a base."""

from __future__ import annotations

from collections.abc import Sequence

from loramerge.adapter import Adapter
from loramerge.adapter.readers import Reading
from loramerge.algebra.health import examine
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.errors import LoramergeError
from loramerge.steps.inputs import base_path
from loramerge.steps.parameters import Context
from loramerge.stream.bake import survey
from loramerge.stream.elsewhere import distances
from loramerge.stream.plan import plan_bake
from loramerge.verbs.inspect.parameters import Inspect
from loramerge.verbs.inspect.result import Inspected

__all__ = ["add_base", "add_weights"]


def add_weights(found: Inspected, adapter: Adapter, parameters: Inspect, context: Context) -> None:
    """Add what the weights say."""
    report = examine(
        adapter, spectra=parameters.spectrum, threads=context.threads, notify=context.notify
    )
    found.checked = "weights"
    found.findings += report.problems
    found.norm = report.norm
    if parameters.modules or parameters.spectrum:
        found.table = report.table


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
        f"{matched} of {total} modules fit{by_name}; {kept:.0%} of the change is kept after rounding "
        "to the base's type"
    )
    found.base |= {
        "works": bool(matched),
        "matched": matched,
        "modules": total,
        "skipped": plan.skipped,
        "change": (asked / weights) ** 0.5 if weights else None,
        "survives": kept,
        "reason": reason,
    }
