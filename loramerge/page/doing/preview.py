"""Draw images that are not written; loaded models stay in the process."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loramerge.adapter import Adapter
from loramerge.errors import UsageError, spelled
from loramerge.events import Event, Notify, Warn
from loramerge.page.labels import in_page
from loramerge.report.pictures import png_bytes
from loramerge.steps import engine
from loramerge.steps.kept import Kept, Recent, state_of
from loramerge.steps.parameters import Context
from loramerge.steps.references import Reference
from loramerge.verbs import verb_named
from loramerge.verbs.preview import Preview, compute_preview

__all__ = ["do"]

_MODELS: dict[Any, Any] = {}
_KEPT = Kept()
_MADE: Recent[Adapter] = Recent(2)  # results of actions that are not written
_RESULT = "result"  # the name of one, as an adapter of the preview


def do(request: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
    """Return the images of `preview` with `values`, row by row in each column.

    With `of`, an action, its result is computed in memory, and is the only adapter.

    Raises:
        LoramergeError: of `preview`, or of the action.
    """
    start = time.perf_counter()
    warnings: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Warn):
            warnings.append(spelled(event.text, in_page))
        notify(event)

    context = Context(notify=listen, models=_MODELS, kept=_KEPT)
    values = dict(request["values"])
    if request.get("of"):
        context = replace(context, known={_RESULT: _made(request["of"], context)})
        values["adapters"] = [_RESULT]
    found = compute_preview(engine.parameters_from(Preview, values), context)
    columns = [
        {"label": label, "change": change, "pictures": [_png(row[n]) for row in found.images]}
        for n, (label, change) in enumerate(zip(found.columns, found.changes, strict=True))
    ]
    return {
        "rows": found.rows,
        "columns": columns,
        "warnings": list(dict.fromkeys(warnings)),
        "seconds": time.perf_counter() - start,
    }


def _made(action: Mapping[str, Any], context: Context) -> Adapter:
    """Return the adapter that an action makes, the same one while its values and inputs stay.

    Raises:
        UsageError: if it makes none.
        LoramergeError: of the verb.
    """
    verb = verb_named(action["verb"])
    assert verb is not None
    if verb.compute is None or verb.gives != "adapter":
        raise UsageError(f"{verb.name} makes no adapter that could be shown")
    compute = verb.compute
    parameters = engine.parameters_from(verb.parameters, action["values"])
    inputs = [value for value in vars(parameters).values() if isinstance(value, (tuple, Reference))]
    named = [one for v in inputs for one in (v if isinstance(v, tuple) else (v,))]
    states = [state_of(one.path()) for one in named if isinstance(one, Reference)]
    key = (verb.name, json.dumps(action["values"], sort_keys=True, default=str), repr(states))

    def make() -> Adapter:
        found: Adapter = compute(parameters, context).adapter
        return found

    return _MADE.of(key, make)


def _png(image: Any) -> dict[str, str]:
    return {"kind": "image/png", "base64": base64.b64encode(png_bytes(image)).decode()}
