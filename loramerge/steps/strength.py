"""Notes on unusually strong changes, with the usual size. They do not block a run.

Programs offer weights up to about 1.5, and most adapters are made for weight 1. Beyond that, images
break down at some point; sliders and deliberate experiments are the exceptions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from loramerge.adapter import Adapter
from loramerge.algebra.health import examine
from loramerge.algebra.weights import Weight, shown_number
from loramerge.errors import listed
from loramerge.families import FAMILIES
from loramerge.steps.references import Reference

__all__ = ["strong_change", "strong_weights"]

_MOST = 2.0  # absolute weight above which a sentence is due
_USUAL = "usual weights are 0.3 to 1.2"
_LARGE = 0.5  # ‖ΔW‖ / ‖W‖ from which on a sentence is due


def strong_weights(
    references: Iterable[Reference], inputs: Sequence[Adapter] = (), result: Adapter | None = None
) -> Iterator[str]:
    """Yield a description of weights that are unusually large, nothing if none is.

    Args:
        inputs, result: where given, their norms are compared; they are read only if a weight is large.
    """
    strong = [
        f"{reference.label} at weight {shown_number(most)}"
        for reference in references
        if abs(most := _largest(reference.weight)) > _MOST
    ]
    if not strong:
        return
    text = f"{listed(strong, 6)}: {_USUAL}"
    if result is not None and (largest := max(map(_norm, inputs), default=0.0)) > 0:
        norm = _norm(result)
        text += (
            f"; the result changes the weights {norm / largest:.3g} times as much as its strongest "
            f"input at weight 1 (norm of ΔW: {norm:.4g}, that input's: {largest:.4g})"
        )
    yield text


def strong_change(share: float | None, family: str) -> Iterator[str]:
    """Yield a description of a change that is large beside the weights, nothing if it is not.

    Args:
        share: ‖ΔW‖ / ‖W‖ over the modules that are changed.
    """
    if share is None or share < _LARGE:
        return
    usual = FAMILIES[family].usual_change if family in FAMILIES else None
    known = (
        f"adapters of {family} change {usual[0]:.0%} to {usual[1]:.0%} at weight 1"
        if usual is not None
        else "so large a change may destroy abilities of the base"
    )
    yield f"the size of the change is {share:.0%} of the norm of the weights that it changes; {known}"


def _largest(weight: Weight) -> float:
    """Return the coefficient of the largest magnitude that a weight gives to any module."""
    stated = (
        weight.default,
        *weight.components.values(),
        *weight.blocks,
        *weight.depth,
        *(value for _, value in weight.match),
    )
    return max(stated, key=abs)


def _norm(adapter: Adapter) -> float:
    return examine(adapter).norm or 0.0
