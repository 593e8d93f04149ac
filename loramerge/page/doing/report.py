"""Run a verb that writes nothing, and make the page of its result."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from loramerge.errors import UsageError
from loramerge.events import Notify
from loramerge.parameters import parameters_of
from loramerge.report.page import page
from loramerge.report.views import has_report, report_of
from loramerge.steps import engine
from loramerge.steps.parameters import Context
from loramerge.verbs import verb_named

__all__ = ["do"]


def do(request: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
    """Return the JSON of `verb` with `values`, and its page if there is one.

    Raises:
        LoramergeError: of the verb.
        UsageError: if the verb writes files.
    """
    verb = verb_named(request["verb"])
    assert verb is not None
    if verb.gives != "report" or any(
        one.name == "output" for one in parameters_of(verb.parameters)
    ):
        raise UsageError(f"{verb.name} writes files", hint="run it")
    parameters = engine.parameters_from(verb.parameters, request["values"])
    context = Context(notify=notify, details=has_report(verb.name))
    result = engine.perform(verb, parameters, context)
    made = page(report_of(verb.name, result)) if has_report(verb.name) else None
    kind = "text/html; charset=utf-8"
    return {
        "result": result.json(),
        "report": made and {"kind": kind, "base64": base64.b64encode(made).decode()},
    }
