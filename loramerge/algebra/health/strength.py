"""The strength of a change beside the weights, and beside other adapters of its family."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from loramerge.adapter import Problem
from loramerge.algebra.health.limits import LIMITS
from loramerge.families import FAMILIES
from loramerge.families.usual import Usual

__all__ = ["LARGE", "mean_norm", "share", "strength_findings", "usual_change", "usual_norm"]

LARGE = (
    0.5  # ‖ΔW‖ / ‖W‖ above which images usually break down, where nothing is known of the family
)


def mean_norm(rows: Iterable[dict[str, Any]]) -> float | None:
    """Return the mean of ‖ΔW‖_F over the modules of an `Examination.table`.

    It is the "Average key norm" that kohya's trainers log with `--scale_weight_norms`. None if no
    module's norm could be computed.
    """
    norms = [row["norm"] for row in rows if row.get("norm") is not None]
    return sum(norms) / len(norms) if norms else None


def usual_change(family: str | None) -> Usual | None:
    """Return the range of ‖ΔW‖/‖W‖ among adapters of a family; None if it was not measured."""
    return FAMILIES[family].usual_change if family and family in FAMILIES else None


def usual_norm(family: str | None) -> Usual | None:
    """Return the range of the mean norm of modules among adapters of a family, None if not measured."""
    return FAMILIES[family].usual_norm if family and family in FAMILIES else None


def share(value: float) -> str:
    """Return a share of the weights' norm in words; small ones are not rounded to nothing."""
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2g} %"


class _Measure(NamedTuple):
    """One way to say how strong an adapter is: what is measured, and how its numbers are written."""

    subject: str
    shown: Callable[[float], str]


_CHANGE = _Measure("the size of the change is {} of the original weights' norm", share)
_NORM = _Measure("the mean norm of a module's change is {}", lambda value: f"{value:.2g}")


def strength_findings(
    family: str | None, *, norm: float | None = None, change: float | None = None
) -> Iterator[Problem]:
    """Yield a finding if an adapter is far stronger or weaker than others of its family.

    Args:
        norm: the mean of ‖ΔW‖_F over its modules; used where `change` cannot tell.
        change: ‖ΔW‖/‖W‖ over the modules that are changed; None without a base.
    """
    known = usual_change(family)
    if change and known is not None:
        yield from _beside(_CHANGE, change, known, family)
        return
    if change and change > LIMITS["stronger-than-usual"].value * LARGE:
        yield _stronger(_CHANGE, change, LARGE, "above half of it, images usually break down")
        return
    known = usual_norm(family)
    if norm and known is not None:
        yield from _beside(_NORM, norm, known, family)


def _beside(measure: _Measure, value: float, usual: Usual, family: str | None) -> Iterator[Problem]:
    known = f"adapters of {family} usually have {usual.words(measure.shown)}"
    if value > LIMITS["stronger-than-usual"].value * usual.high:
        yield _stronger(measure, value, usual.high, known)
    elif value < usual.low / LIMITS["weaker-than-usual"].value:
        yield Problem(
            "note",
            "weaker-than-usual",
            None,
            f"{measure.subject.format(measure.shown(value))}; {known}",
            f"at weight {usual.low / value:.3g} it is within what is usual; check its alphas",
        )


def _stronger(measure: _Measure, value: float, high: float, known: str) -> Problem:
    return Problem(
        "warning",
        "stronger-than-usual",
        None,
        f"{measure.subject.format(measure.shown(value))}; {known}",
        f"at weight {high / value:.2g} it is within what is usual",
    )
