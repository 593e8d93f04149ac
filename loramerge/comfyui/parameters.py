"""Inputs of nodes that follow from the parameters of verbs, and parameters from their values.

A widget always has a value, so one stands for "not given": 0 for a number, no text, the choice `none`.
The input `options` takes all other parameters, one a line, in the words of recipes.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from loramerge.comfyui.node import NOTHING, NodeInput
from loramerge.comfyui.places import bases
from loramerge.errors import UsageError, listed, nearest
from loramerge.files.yaml_values import yaml_values
from loramerge.parameters import Parameter, parameters_of

__all__ = ["options_slot", "slots_of", "values_of"]

_WRITING = ("to", "for", "dtype")  # chosen where an adapter is saved
_LARGEST = 2**31 - 1  # that the interface counts to


def slots_of(kind: type[Any], *words: str) -> tuple[NodeInput, ...]:
    """Return the widgets of some parameters of a verb, by their words in recipes."""
    known = _known(kind)
    return tuple(_slot(known[word]) for word in words)


def options_slot(kind: type[Any], example: str) -> NodeInput:
    """Return the input for all other parameters of a verb.

    Args:
        example: that the tooltip shows.
    """
    verb = kind.__name__.lower()
    return NodeInput(
        kind="lines",
        name="options",
        help=f"Further parameters of {verb}, one a line, as in a recipe: {example}.",
        default="",
    )


def values_of(
    kind: type[Any], words: Sequence[str], given: Mapping[str, Any], *, writes: bool = False
) -> dict[str, Any]:
    """Return the parameters of a verb that the values of a node give.

    Args:
        words: of the parameters that have a widget.
        given: the values of the widgets by word, and `options`.
        writes: whether the node writes a file itself; others leave dialect and type to `Save adapter`.

    Raises:
        UsageError: if an option is not a parameter, or is given twice.
    """
    known = _known(kind)
    found = {word: given[word] for word in words if not _is_absent(known[word], given[word])}
    for word in words:
        if word in found and known[word].many:
            found[word] = [part.strip() for part in str(found[word]).split(",") if part.strip()]
    options = _options(given.get("options") or "")
    for word, value in options.items():
        one = known.get(word)
        if one is None or not _is_option(one, writes=writes):
            allowed = [w for w, p in known.items() if _is_option(p, writes=writes)]
            close = nearest(word, allowed)
            raise UsageError(
                f"options: {word!r} is not a parameter here",
                expected=listed(allowed, 60),
                hint=f"did you mean {close!r}?" if close else None,
            )
        if word in found:
            raise UsageError(
                f"{word} is given twice, by its own input and in options", hint="give one of them"
            )
        found[word] = value
    return found


def _known(kind: type[Any]) -> dict[str, Parameter]:
    return {one.word: one for one in parameters_of(kind, installed=True)}


def _is_option(one: Parameter, *, writes: bool) -> bool:
    """Return whether a recipe can have the parameter, and would repeat what it does.

    Files are chosen from lists, because workflows may come from anyone.
    """
    if one.refers or not one.doc.recipe:
        return False
    return writes or (one.doc.result and one.word not in _WRITING)


def _options(text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    example = "lines such as density: 0.5"
    try:
        found = yaml_values(text)
    except ValueError as error:
        raise UsageError("options cannot be read", expected=example, found=str(error)) from None
    if not isinstance(found, Mapping):
        raise UsageError("options cannot be read", expected=example, found=text.strip())
    return {str(word): value for word, value in found.items()}


def _is_absent(one: Parameter, value: Any) -> bool:
    """Return whether the value of a widget stands for a parameter that is not given."""
    if value is None or value == one.default:
        return True
    if one.optional or one.many:
        return value in (0, "", NOTHING) and not isinstance(value, bool)
    return False


def _slot(one: Parameter) -> NodeInput:
    """Return the widget of a parameter."""
    help = _plain(one.doc.help)
    default = None if one.required else one.default
    if one.doc.completes == "bases":
        return NodeInput(
            kind="choice", name=one.word, help=help, default=NOTHING, choices=_with_nothing(bases)
        )
    if one.doc.choices is not None or typing.get_origin(one.kind) is typing.Literal:
        listing = one.doc.choices or (lambda: typing.get_args(one.kind))
        choices = _with_nothing(listing) if one.optional else listing
        default = NOTHING if one.optional else default
        return NodeInput(kind="choice", name=one.word, help=help, default=default, choices=choices)
    if one.kind is bool:
        return NodeInput(kind="switch", name=one.word, help=help, default=default)
    if one.kind in (int, float):
        whole = one.kind is int
        off = one.optional or default is None
        return NodeInput(
            kind="whole" if whole else "number",
            name=one.word,
            help=f"{help} 0: not used." if off else help,
            default=0 if default is None else default,
            least=0,
            most=_LARGEST if whole else _most(one),
            step=1 if whole else 0.001,
        )
    return NodeInput(kind="text", name=one.word, help=help, default="")


def _with_nothing(listing: Any) -> Any:
    return lambda: (NOTHING, *listing())


def _most(one: Parameter) -> float:
    limits = [getattr(bound, name, None) for bound in one.bounds for name in ("le", "lt")]
    return min((limit for limit in limits if limit is not None), default=1e6)


def _plain(text: str) -> str:
    """Return help of the command line in the words of inputs: `--max-size` becomes `max_size`."""
    return re.sub(r"--([a-z][a-z-]*)", lambda found: found[1].replace("-", "_"), text)
