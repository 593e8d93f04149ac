"""The way from a function to a verb: typed parameters in, a result out."""

from __future__ import annotations

import inspect as introspection
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, TypeVar, get_type_hints

from loramerge.adapter import Adapter
from loramerge.algebra.weights import Weight
from loramerge.errors import UsageError
from loramerge.habits import answer_to_parameter
from loramerge.parameters import parameters_of
from loramerge.signatures import key_of
from loramerge.steps import engine
from loramerge.steps.parameters import Context
from loramerge.verbs import verb_named

__all__ = ["Given", "Named", "Weighted", "adapter_from", "checked", "perform", "with_parameters"]

Named = str | PathLike[str]
Given = Named | Adapter
Weighted = Given | tuple[Given, float | Weight]

Function = TypeVar("Function", bound=Callable[..., Any])


def with_parameters(kind: type[Any], typed: type[Any]) -> Callable[[Function], Function]:
    """Give a function the signature and the help of the parameters that it hands on to a verb.

    Args:
        kind: the verb's parameters; `typed`: the dictionary that names those the function takes.
    """

    def decorate(function: Function) -> Function:
        types = get_type_hints(typed)
        own = introspection.signature(function)
        handed = [one for one in parameters_of(kind) if key_of(one) in types]
        named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        named += [
            introspection.Parameter(
                key_of(one),
                introspection.Parameter.KEYWORD_ONLY,
                default=one.default,
                annotation=types[key_of(one)],
            )
            for one in handed
            if one.holder is None
        ]
        lines = [f"    {key_of(one)}: {one.doc.help}" for one in handed]
        text = introspection.cleandoc(function.__doc__ or "")
        function.__doc__ = "\n".join((text, "", "Parameters of the verb:", *lines))
        vars(function)["__signature__"] = own.replace(parameters=named)
        return function

    return decorate


def checked(
    kind: type[Any], given: Mapping[str, Any], own: Mapping[str, Any], typed: type[Any]
) -> Any:
    """Return the parameters of a verb from those that were given, and those set by the function."""
    for one in parameters_of(kind):
        word = next((word for word in (one.word, one.name) if word in given), None)
        if word is not None and one.holder is None and key_of(one) not in typed.__annotations__:
            raise UsageError(
                f"{word!r} is not a parameter of this function",
                expected=", ".join(typed.__annotations__),
                hint="save writes the result"
                if word in ("output", "force")
                else answer_to_parameter(word, kind.__name__.lower(), typed.__annotations__),
            )
    return engine.parameters_from(kind, {**given, **own})


def perform(
    name: str,
    given: Mapping[str, Any],
    own: Mapping[str, Any],
    typed: type[Any],
    context: Context,
    *,
    save: bool,
) -> Any:
    """Run a verb on plain values and return its result."""
    verb = verb_named(name)
    assert verb is not None
    parameters = checked(verb.parameters, given, own, typed)
    return engine.perform(verb, parameters, context, save=save)


def adapter_from(
    name: str,
    given: Mapping[str, Any],
    own: Mapping[str, Any],
    typed: type[Any],
    context: Context,
) -> Adapter:
    """Run a verb that gives an adapter, and return that without writing it."""
    found = perform(name, given, own, typed, context, save=False).adapter
    assert isinstance(found, Adapter)
    return found
