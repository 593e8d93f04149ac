"""Estimate what rounding keeps of a merge, from some of its tensors, without writing anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loramerge.algebra.operator import Operator
from loramerge.errors import Message, Setting, in_recipe, spelled
from loramerge.events import Notify, ignore
from loramerge.files.dtypes import DTYPES
from loramerge.steps.loss import WHOLE, estimated_from
from loramerge.steps.rounding_words import rounding_words
from loramerge.stream.merge_plan import MergePlan
from loramerge.stream.merge_survey import Surveyed, survey
from loramerge.stream.survival import totals_of

__all__ = ["forecast", "types_of", "warned_of", "why_unknown"]

_MOST = 32  # tensors on which it is measured,
_LEAST = 8  # but so many of each storage, and so many parameters that change
_WIDER = 4.0


def why_unknown(operator: Operator) -> str | None:
    """Return why nothing can be estimated for an operator, in a sentence; None if something can."""
    if operator.pool is None:
        return None
    return (
        f"No estimate of what rounding keeps: {operator.name} compares all weights of the models before "
        "it merges the first."
    )


def types_of(plan: MergePlan) -> list[str]:
    """Return the types of the merged tensors, as written, in words."""
    stored = {
        plan.dtype or blend.target.tensor.dtype
        for tensors in plan.blends.values()
        for blends in tensors.values()
        for blend in blends
    }
    return sorted(DTYPES[dtype].word for dtype in stored)


def warned_of(plan: MergePlan, kept: float, relative_error: float) -> Iterator[Message]:
    """Yield the warning of what rounding takes from a merge, or adds to it; nothing if it is little.

    Args:
        kept, relative_error: of the change, as the merge reports them.
    """
    remedies = ("nearly all of it is kept as it is with ", Setting("dtype", "float32"))
    yield from rounding_words(kept, relative_error, types_of(plan), remedies)


def forecast(
    plan: MergePlan, *, threads: int | None = None, notify: Notify = ignore
) -> dict[str, Any] | None:
    """Return what rounding keeps of the change that the first model gets; None without a change.

    The change is measured from the base where there is one. All tensors are measured if they are small
    enough, else the largest, and some of the rest.

    Returns:
        `kept` and `relative_error` as the merge reports them (`survived`), `change` (‖ΔW‖ / ‖W‖), the
        `worst` module, the first two for each of the `storages`, `estimated`: from how many of the
        computed tensors, None if from all, and `warnings` of what rounding takes or adds.
    """
    share = 1.0 if _bytes(plan) <= WHOLE else min(1.0, _MOST / max(1, plan.merged))
    found = survey(plan, share, _LEAST, threads=threads, notify=notify)
    while share < 1.0 and _changed(found) < _LEAST:  # models may differ in few of their tensors
        share = min(1.0, _WIDER * share)
        found = survey(plan, share, _LEAST, threads=threads, notify=notify)
    totals = totals_of([one for part in found.values() for one in part.survivals])
    if totals is None:
        return None
    return {
        "kept": totals.survived,
        "relative_error": totals.relative_error,
        "change": totals.change,
        "worst": {"module": totals.worst.module, "relative_error": totals.worst.relative_error},
        "estimated": estimated_from(
            sum(part.measured for part in found.values()),
            sum(part.tensors for part in found.values()),
        ),
        "storages": [
            {"storage": name, "kept": own.survived, "relative_error": own.relative_error}
            for name, part in found.items()
            if (own := totals_of(part.survivals)) is not None
        ],
        "warnings": [
            spelled(text, in_recipe)
            for text in warned_of(plan, totals.survived, totals.relative_error)
        ],
    }  # fmt: skip


def _bytes(plan: MergePlan) -> int:
    """Return about how many bytes of the inputs a merge reads."""
    blends = (
        one for tensors in plan.blends.values() for several in tensors.values() for one in several
    )
    return sum(one.target.tensor.nbytes * max(1, len(one.terms)) for one in blends)


def _changed(found: Mapping[str, Surveyed]) -> int:
    return sum(one.asked > 0 for part in found.values() for one in part.survivals)
