"""Nodes that compute an adapter from others, by a verb."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loramerge.adapter import Adapter
from loramerge.comfyui.parameters import values_of
from loramerge.comfyui.places import path_of_base
from loramerge.comfyui.running import references, report_of, result_of
from loramerge.parameters import parameters_of

__all__ = ["computed"]


def computed(
    kind: type[Any],
    words: Sequence[str],
    given: Mapping[str, Any],
    holder: str,
    adapters: Sequence[object],
) -> tuple[Adapter, str]:
    """Run a verb in memory; return its adapter and the report.

    Args:
        kind: the parameters of the verb, which has their name; `words`: those that have a widget.
        given: the values of the widgets, and `options`; a base as the list of bases has it.
        holder: the parameter for the adapters.
        adapters: the inputs, alone or with weights.

    Raises:
        LoramergeError: of the verb.
    """
    values = values_of(kind, words, given)
    if "base" in values:
        values["base"] = path_of_base(values["base"])
    found, context = references(adapters)
    (parameter,) = (one for one in parameters_of(kind) if one.word == holder)
    values[holder] = found if parameter.many else found[0]
    _, result = result_of(kind.__name__.lower(), values, context)
    return result.adapter, report_of(result)
