"""Notes on unusually strong changes, with the usual size. They do not block a run.

Programs offer weights up to about 1.5, and most adapters are made for weight 1. Beyond that, images
break down at some point; sliders and deliberate experiments are the exceptions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from loramerge.adapter import Adapter
from loramerge.algebra.health import norm_of
from loramerge.algebra.health.strength import LARGE, usual_change
from loramerge.algebra.health.strength import share as shown_share
from loramerge.algebra.weights import Weight, shown_number
from loramerge.errors import listed
from loramerge.steps.references import Reference

__all__ = ["strong_change", "strong_weights"]

_MOST = 2.0  # absolute weight above which a sentence is due
_USUAL = "usual weights are 0.3 to 1.2"
_LOUD = 3.0  # times the norm of the strongest input above which a sentence is due
_FAINT = 0.05  # and below which one is


def strong_weights(
    references: Iterable[Reference],
    inputs: Sequence[Adapter] = (),
    result: Adapter | None = None,
    *,
    gain: float | None = 1.0,
) -> Iterator[str]:
    """Yield a description of unusually large weights, and of a result far louder or fainter than usual.

    Args:
        inputs, result: where given, their norms are compared; they are read only if the weights leave it
            open that the result is unusual.
        gain: how much larger the result can be than the weighted inputs together; None if unknown.
    """
    weights = [(reference.label, _largest(reference.weight)) for reference in references]
    strong = [
        f"{label} at weight {shown_number(weight)}"
        for label, weight in weights
        if abs(weight) > _MOST
    ]
    text = f"{listed(strong, 6)}: {_USUAL}" if strong else ""
    together = sum(abs(weight) for _, weight in weights)
    bounded = gain is not None and gain * together <= _LOUD
    cancels = any(weight < 0 for _, weight in weights)
    if result is not None and (strong or cancels or not bounded):
        compared = _compared(inputs, result, anyway=bool(strong))
        text = "; ".join(filter(None, (text, compared)))
    if text:
        yield text


def _compared(inputs: Sequence[Adapter], result: Adapter, *, anyway: bool) -> str:
    """Return the norm of a result beside that of its strongest input, empty where it is usual.

    Args:
        anyway: also where it is usual.
    """
    largest = max(map(_norm, inputs), default=0.0)
    norm = _norm(result)
    if largest <= 0 or (not anyway and _FAINT * largest <= norm <= _LOUD * largest):
        return ""
    ratio = norm / largest
    text = (
        f"the result changes the weights {ratio:.3g} times as much as its strongest "
        f"input at weight 1 (norm of ΔW: {norm:.4g}, that input's: {largest:.4g})"
    )
    if ratio > _LOUD:
        text += f"; {1 / ratio:.2g} times these weights would make it as strong as that input"
    elif ratio < _FAINT:
        text += "; the inputs cancel, or the method leaves nearly nothing of them"
    return text


def strong_change(share: float | None, family: str) -> Iterator[str]:
    """Yield a description of a change that is large beside the weights, nothing if it is not.

    Args:
        share: ‖ΔW‖ / ‖W‖ over the modules that are changed.
    """
    if share is None or share < LARGE:
        return
    usual = usual_change(family)
    known = (
        f"adapters of {family} at weight 1 usually change {usual.words(shown_share)}"
        if usual is not None
        else "so large a change may destroy abilities of the base"
    )
    yield (
        f"the size of the change is {100 * share:.0f} % of the norm of the weights that it changes; "
        f"{known}"
    )


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
    return norm_of(adapter) or 0.0
