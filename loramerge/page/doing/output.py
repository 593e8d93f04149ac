"""Say where an action would write its result, from headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loramerge.errors import LoramergeError
from loramerge.events import Notify, ignore
from loramerge.steps import engine
from loramerge.steps.parameters import Context
from loramerge.verbs import verb_named

__all__ = ["do"]


def do(request: Mapping[str, Any], notify: Notify) -> str | None:
    """Return the path that `verb` with `values` writes to; None if it writes none, or is refused."""
    verb = verb_named(request["verb"])
    assert verb is not None
    if verb.output_path is None:
        return None
    try:
        parameters = engine.parameters_from(verb.parameters, request["values"])
        return str(verb.output_path(parameters, Context(notify=ignore)))
    except LoramergeError:
        return None  # the plan says why
