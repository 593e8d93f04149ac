"""Foresee what a merge changes, and what rounding keeps of it, without writing anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loramerge.algebra.operator import Operator
from loramerge.checkpoint import Place
from loramerge.errors import Message, Setting
from loramerge.events import Notify, ignore
from loramerge.files.dtypes import DTYPES
from loramerge.steps.foreseen import change_of, estimated_from, figures_of
from loramerge.steps.loss import WHOLE
from loramerge.steps.rounding_words import rounding_words
from loramerge.stream.merge_plan import MergePlan
from loramerge.stream.merge_survey import Surveyed, survey
from loramerge.stream.survival import Survival, totals_of
from loramerge.stream.writing import dtype_of

__all__ = ["changes_of", "forecast", "survivals_of", "types_of", "warned_of", "why_unknown"]

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
    return sorted(
        {
            _word(plan, blend.target)
            for tensors in plan.blends.values()
            for blends in tensors.values()
            for blend in blends
        }
    )


def _word(plan: MergePlan, place: Place) -> str:
    """Return the type in which a tensor is written, in words."""
    return DTYPES[dtype_of(place.tensor, plan.dtype, gguf=place.file.gguf)].word


def warned_of(plan: MergePlan, kept: float, relative_error: float) -> Iterator[Message]:
    """Yield the warning of what rounding takes from a merge, or adds to it; nothing if it is little.

    Args:
        kept, relative_error: of the change, as the merge reports them.
    """
    remedies = ("nearly all of it is kept as it is with ", Setting("dtype", "float32"))
    yield from rounding_words(kept, relative_error, types_of(plan), remedies)


def changes_of(plan: MergePlan) -> list[dict[str, Any]]:
    """Return the changes that a merge makes, as a dry run lists them; see `foreseen.change_of`."""
    return [change_of(one.site, one.target, _word(plan, one.target)) for one in plan.changes()]


def forecast(
    plan: MergePlan, *, threads: int | None = None, notify: Notify = ignore
) -> dict[str, Any] | None:
    """Return what rounding keeps of the change that the first model gets; None without a change.

    The change is measured from the base where there is one.

    Returns:
        The figures, see `foreseen.figures_of`, and `storages`: `kept` and `relative_error` for each.
    """
    found = _surveyed(plan, threads, notify)
    totals = totals_of([one for part in found.values() for one in part.survivals])
    if totals is None:
        return None
    storages = [
        {"storage": name, "kept": own.survived, "relative_error": own.relative_error}
        for name, part in found.items()
        if (own := totals_of(part.survivals)) is not None
    ]
    return {**figures_of(totals, *_counts(found)), "storages": storages}


def survivals_of(
    plan: MergePlan, *, threads: int | None = None, notify: Notify = ignore
) -> tuple[Sequence[Survival], str | None]:
    """Return what a merge would report its figures from, and from how many tensors; None if from all.

    Raises:
        NumericsError: see `stream.merge.merge`.
    """
    found = _surveyed(plan, threads, notify)
    survivals = [one for part in found.values() for one in part.survivals]
    return survivals, estimated_from(*_counts(found))


def _surveyed(plan: MergePlan, threads: int | None, notify: Notify) -> dict[str, Surveyed]:
    """Measure all tensors if they are small enough, else the largest, and some of the rest."""
    share = 1.0 if _bytes(plan) <= WHOLE else min(1.0, _MOST / max(1, plan.merged))
    found = survey(plan, share, _LEAST, threads=threads, notify=notify)
    while share < 1.0 and _changed(found) < _LEAST:  # models may differ in few of their tensors
        share = min(1.0, _WIDER * share)
        found = survey(plan, share, _LEAST, threads=threads, notify=notify)
    return found


def _counts(found: Mapping[str, Surveyed]) -> tuple[int, int]:
    """Return how many tensors were measured, and how many are computed."""
    parts = found.values()
    return sum(part.measured for part in parts), sum(part.tensors for part in parts)


def _bytes(plan: MergePlan) -> int:
    """Return about how many bytes of the inputs a merge reads."""
    blends = (
        one for tensors in plan.blends.values() for several in tensors.values() for one in several
    )
    return sum(one.target.tensor.nbytes * max(1, len(one.terms)) for one in blends)


def _changed(found: Mapping[str, Surveyed]) -> int:
    return sum(one.asked > 0 for part in found.values() for one in part.survivals)
