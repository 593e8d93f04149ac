"""Predict what an action would write, from headers; where asked to, also what its weights say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from loramerge.algebra.operators.linear import OPERATOR as LINEAR
from loramerge.errors import LoramergeError, spelled
from loramerge.events import Event, Notify, Warn
from loramerge.library.shipped import by_name
from loramerge.page.labels import in_page
from loramerge.steps import engine
from loramerge.steps.kept import Kept
from loramerge.steps.parameters import Context, Verb
from loramerge.steps.prediction import Prediction
from loramerge.steps.writing import RankParameters
from loramerge.verbs import verb_named

__all__ = ["do"]

_KEPT = Kept()
_LONGEST = 20.0  # seconds that a result may take to compute while one looks
_LOSSES = ("relative_error", "norm_kept", "worst", "left_out")


def do(request: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
    """Return the prediction of `verb` with `values`, its warnings, and what would refuse it.

    With `relations` true, weights are read as well: for a verb that can explain how its inputs relate
    that is `relations`, for others the losses, or what the verb itself forecasts.
    """
    verb = verb_named(request["verb"])
    assert verb is not None
    warnings: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Warn):
            warnings.append(by_name(spelled(event.text, in_page)))
        notify(event)

    context = Context(notify=listen, kept=_KEPT)
    found: dict[str, Any] = {"refused": None, "relations": None}
    try:
        parameters = engine.parameters_from(verb.parameters, request["values"])
        if callable(check := getattr(parameters, "check", None)):  # inspect has a parameter `check`
            check()
        prediction = None if verb.predict is None else verb.predict(parameters, context)
        found |= {} if prediction is None else prediction.json()
        if request.get("relations") and prediction is not None:
            found |= _measured(verb, parameters, prediction, context)
    except LoramergeError as error:
        found["refused"] = by_name(error.text(in_page))
    return {**found, "warnings": list(dict.fromkeys(warnings))}


def _measured(
    verb: Verb, parameters: Any, prediction: Prediction, context: Context
) -> dict[str, Any]:
    """Return what the weights say that headers do not."""
    found: dict[str, Any] = {}
    if verb.explain is not None:
        found["relations"] = _relations(verb, parameters, context)
    if verb.forecast is not None:
        return found | verb.forecast(parameters, context)
    if verb.compute is not None and _loses(parameters) and prediction.seconds < _LONGEST:
        result = verb.compute(parameters, replace(context, details=False))
        content = result.json()
        found["losses"] = {name: content[name] for name in _LOSSES if name in content}
        if prediction.size_with is not None and result.adapter is not None:
            size = prediction.size_with(result.adapter)
            found |= {"size": size, "ranks": result.ranks, "at_most": False}
    return found


def _loses(parameters: Any) -> bool:
    """Return whether a result may differ from the exact one: of verbs, only a plain sum never does."""
    if not hasattr(parameters, "explain"):
        return True
    return parameters.rule(1).truncates or not parameters.operation().is_sum


def _relations(verb: Verb, parameters: Any, context: Context) -> dict[str, Any] | None:
    """Return the relations of the inputs of a mix before ranks are lowered.

    The inputs are mixed by another method only where that is fast; else the norm of the result is None.
    """
    if len(parameters.adapters) < 2:
        return None
    uncut = {one.name: None for one in fields(RankParameters)}
    parameters = replace(parameters, **uncut, fair=False)
    plain = parameters.operation().is_sum and parameters.compat is None
    assert verb.predict is not None and verb.explain is not None
    known = plain or verb.predict(parameters, context).seconds < _QUICK
    if not known:
        parameters = replace(
            parameters, method=LINEAR.name, settings={}, scale=None, correction=None, compat=None
        )
    explained = verb.explain(parameters, context).json()
    names = explained.pop("inputs")
    if not known:
        for part in (*explained["blocks"].values(), explained["total"]):
            part |= {"result": None, "ratio": None}
    return {
        "names": names,
        **explained,
        "pairs": [
            {**pair, "names": [names[pair["a"]], names[pair["b"]]]} for pair in explained["pairs"]
        ],
    }


_QUICK = 1.0  # seconds that the mix of another method may take
