"""Forms of verbs, as the page draws them: derived from the parameters, as options and recipes are."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

from loramerge.algebra.operators import OPERATORS
from loramerge.parameters import Parameter, parameters_of
from loramerge.steps.parameters import Verb
from loramerge.verbs import known_verbs

__all__ = ["form_of", "forms", "is_offered", "operators"]

_KINDS = {bool: "switch", int: "whole", float: "number"}
_LIMITS = {"least": "ge", "most": "le", "above": "gt", "below": "lt"}
_ALSO = ("output", "force")  # not in recipes, where `save` says it


def forms() -> dict[str, Any]:
    """Return the forms of all verbs, by name."""
    return {name: form_of(verb) for name, verb in known_verbs().items()}


def form_of(verb: Verb) -> dict[str, Any]:
    """Return the form of a verb."""
    taken = _operators_by_parameter() if hasattr(verb.parameters, "held_parameters") else {}
    return {
        "help": (verb.parameters.__doc__ or "").strip(),
        "gives": verb.gives,
        "parameters": [
            _field(one, taken)
            for one in parameters_of(verb.parameters, installed=True)
            if is_offered(one)
        ],
    }


def is_offered(one: Parameter) -> bool:
    """Return whether the page has a parameter: those of recipes, and where the result lands."""
    return one.doc.recipe or one.name in _ALSO


def _field(one: Parameter, taken: Mapping[str, list[str]]) -> dict[str, Any]:
    choices = _choices(one)
    limits = {
        word: limit
        for word, name in _LIMITS.items()
        for bound in one.bounds
        if (limit := getattr(bound, name, None)) is not None
    }
    return {
        "word": one.word,
        "help": one.doc.help,
        "kind": "choice" if choices is not None else _KINDS.get(one.kind, "text"),
        "refers": one.doc.completes if one.refers else None,
        "weighted": one.weighted,
        "many": one.many,
        "separated": one.doc.separated,
        "required": one.required,
        "default": None if one.required else _plain(one.default),
        "choices": choices,
        **dict.fromkeys(_LIMITS),
        **limits,
        "per_module": one.per_module,
        "output": one.name == "output",
        "operators": taken.get(one.word) if one.holder is not None else None,
    }


def _choices(one: Parameter) -> list[Any] | None:
    if one.doc.choices is not None:
        return list(one.doc.choices())
    if typing.get_origin(one.kind) is typing.Literal:
        return list(typing.get_args(one.kind))
    return None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@cache
def _operators_by_parameter() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for operator in operators():
        for word in operator["parameters"]:
            found.setdefault(word, []).append(operator["name"])
    return found


def operators() -> list[dict[str, Any]]:
    """Return the merge operators: what they do, when to use them, and the words of their parameters."""
    OPERATORS.look_for_others()
    return [
        {
            "name": one.name,
            "summary": one.title,
            "formula": one.formula,
            "when": one.when,
            "when_models": one.when_models or one.when,
            "source": one.source,
            "scale": one.scale,
            "parameters": [parameter.word for parameter in one.own_parameters],
            "corrects": one.correct is not None,
            "checkpoints": not one.needs_factors,
            "least": one.inputs[0],
            "most": one.inputs[1],
        }
        for one in OPERATORS.known()
    ]
