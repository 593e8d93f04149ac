"""Verbs: their parameters, what they give, and the context they run in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loramerge.events import Notify, ignore
from loramerge.parameters import Doc, Parameter, parameters_of, value_of

if TYPE_CHECKING:
    from loramerge.adapter import Adapter

__all__ = ["Context", "Doc", "Parameter", "Verb", "command_words", "parameters_of"]


@dataclass(frozen=True)
class Context:
    """How to run, as opposed to what: nothing here changes a result.

    Args:
        threads: worker threads; None takes all processors.
        device: torch device for decompositions, None for numpy.
        notify: told of progress, notes and warnings.
        strip: write no record of what made a file into it.
        known: what names stand for, before they are looked up: adapters in memory, or paths.
        root: folder that relative paths start from; None is the current one.
    """

    threads: int | None = None
    device: str | None = None
    notify: Notify = ignore
    strip: bool = False
    known: Mapping[str, Adapter | Path] = field(default_factory=dict)
    root: Path | None = None


@dataclass(frozen=True)
class Verb:
    """Something that can be done: one step of a recipe, one command, one function.

    Args:
        parameters: the frozen dataclass that says what to do.
        gives: an adapter, a checkpoint or a picture (always written), or a report.
        run: function of parameters and context that does it all, writing included.
        compute: for adapters, the same without writing; the result holds the adapter.
        predict: function of parameters and context that foretells the result from headers.
    """

    name: str
    parameters: type[Any]
    gives: Literal["adapter", "checkpoint", "picture", "report"]
    run: Callable[[Any, Context], Any]
    predict: Callable[[Any, Context], Any]
    compute: Callable[[Any, Context], Any] | None = None


def command_words(name: str, parameters: Any) -> tuple[str, ...]:
    """Return the command line that says the same: `("loramerge", "mix", "a:0.5", "-o", "half")`.

    Arguments come first, then options, what is written last. Defaults are left out.
    """
    arguments, options, output = [], [], []
    for one in parameters_of(type(parameters)):
        value = value_of(parameters, one)
        if not one.required and value == one.default:
            continue
        texts = [str(text) for text in (value if one.many else (value,))]
        if one.kind is float:
            texts = [text.removesuffix(".0") for text in texts]
        flag = max(one.doc.flags, key=len, default=f"--{one.name.replace('_', '-')}")
        if one.doc.positional:
            arguments += texts
        elif one.kind is bool:
            options.append(flag)
        elif one.name == "output":
            output += ["-o", *texts]
        else:
            options += [word for text in texts for word in (flag, text)]
    return ("loramerge", name, *arguments, *options, *output)


def stated(parameters: Any) -> Iterator[tuple[Parameter, Any]]:
    """Yield the parameters of a recipe step whose values are not the defaults, with the values."""
    for one in parameters_of(type(parameters)):
        value = value_of(parameters, one)
        if one.doc.recipe and (one.required or value != one.default):
            yield one, value
