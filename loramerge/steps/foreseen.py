"""Parts that the forecasts and dry runs of verbs share which write checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from loramerge.adapter import Site
from loramerge.checkpoint import Place
from loramerge.errors import Message, in_recipe, spelled
from loramerge.events import Warn
from loramerge.steps.parameters import Context
from loramerge.stream.survival import Totals

__all__ = ["change_of", "estimated_from", "figures_of", "warn"]


def change_of(site: Site, place: Place, dtype: str) -> dict[str, Any]:
    """Return the change of a tensor, or of some of its rows, as a dry run lists it.

    Args:
        place: where the tensor that changes is stored.
        dtype: the type that the tensor will have, in words.
    """
    return {
        "file": str(place.file.relative),
        "tensor": place.name,
        "module": site.name,
        "rows": list(place.rows),
        "shape": list(place.shape),
        "dtype": dtype,
    }


def figures_of(totals: Totals, measured: int, tensors: int) -> dict[str, Any]:
    """Return the figures of a forecast.

    Args:
        totals: over the tensors that were measured.
        measured: number of these.
        tensors: number of all that change.

    Returns:
        `kept` and `relative_error` as the verb reports them, `change` (‖ΔW‖ / ‖W‖), the `worst` module,
        and `estimated`: from how many of the tensors, None if from all.
    """
    return {
        "kept": totals.survived,
        "relative_error": totals.relative_error,
        "change": totals.change,
        "worst": {"module": totals.worst.module, "relative_error": totals.worst.relative_error},
        "estimated": estimated_from(measured, tensors),
    }


def estimated_from(measured: int, tensors: int) -> str | None:
    """Return from how many of some tensors something was estimated, in words; None if from all."""
    return None if measured == tensors else f"from {measured} of {tensors} tensors"


def warn(notes: list[str], warnings: Iterable[Message], context: Context) -> None:
    """Report warnings, also among the notes of a result."""
    for text in warnings:
        context.notify(Warn(text))
        notes.append(spelled(text, in_recipe))
