"""The form in which an adapter is saved: its dialect and type."""

from __future__ import annotations

from loramerge.adapter import Adapter
from loramerge.comfyui.node import NOTHING, NodeInput
from loramerge.comfyui.running import references, result_of
from loramerge.dialects import DIALECTS

__all__ = ["form_slots", "in_form"]

_TYPES = ("float32", "float16", "bfloat16")


def form_slots() -> tuple[NodeInput, ...]:
    """Return the inputs that choose dialect and type."""
    return (
        NodeInput(
            kind="choice",
            name="dialect",
            help="Names of the tensors; none: those of the inputs if they agree, else the usual ones of "
            "the family.",
            default=NOTHING,
            choices=_dialects,
        ),
        NodeInput(
            kind="choice",
            name="dtype",
            help="Type of the numbers; none: the widest of the inputs.",
            default=NOTHING,
            choices=lambda: (NOTHING, *_TYPES),
        ),
    )


def _dialects() -> tuple[str, ...]:
    """Return the dialects of single files."""
    return (NOTHING, *(name for name, one in DIALECTS.items() if not one.folder and one.writable))


def in_form(adapter: Adapter, dialect: str, dtype: str) -> Adapter:
    """Return the adapter that is saved: converted, if another dialect or type is asked for.

    So a recipe has a step of its own for it, and the steps before stay as they were.
    """
    if dialect == dtype == NOTHING:
        return adapter
    (found,), context = references([adapter])
    _, result = result_of("convert", {"adapter": found, **_written(dialect, dtype)}, context)
    changed: Adapter = result.adapter
    return changed


def _written(dialect: str, dtype: str) -> dict[str, str]:
    given = {"to": dialect, "dtype": dtype}
    return {word: value for word, value in given.items() if value != NOTHING}
