"""Predict what an action would write, from headers, and how the inputs of a mix relate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loramerge.errors import LoramergeError, in_recipe, spelled
from loramerge.events import Event, Notify, Warn
from loramerge.steps import engine
from loramerge.steps.parameters import Context
from loramerge.verbs import verb_named

__all__ = ["do"]


def do(request: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
    """Return the prediction of `verb` with `values`, its warnings, and what would refuse it.

    With `relations` true, a verb that can explains how its inputs relate, which reads them.
    """
    verb = verb_named(request["verb"])
    assert verb is not None
    warnings: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Warn):
            warnings.append(spelled(event.text, in_recipe))

    context = Context(notify=listen)
    refused, found, relations = None, None, None
    try:
        parameters = engine.parameters_from(verb.parameters, request["values"])
        found = None if verb.predict is None else verb.predict(parameters, context)
        if verb.explain is not None and request.get("relations"):
            relations = verb.explain(parameters, context).json()
    except LoramergeError as error:
        refused = error.text(in_recipe)
    return {
        **({} if found is None else found.json()),
        "warnings": list(dict.fromkeys(warnings)),
        "refused": refused,
        "relations": relations,
    }
