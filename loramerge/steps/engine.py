"""One way to run a verb, for commands, recipes and Python: values → parameters → result."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from loramerge.errors import LoramergeError, Setting, UsageError
from loramerge.events import Note
from loramerge.parameters import Parameter, checked, made_of, parameters_of, wrong
from loramerge.steps.parameters import Context, Verb

__all__ = ["parameters_from", "perform", "steps_done"]


def parameters_from(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """Return parameters made from plain values, each checked against its field.

    Args:
        kind: the frozen dataclass.
        values: name or word of a parameter → value; an adapter with its weight may be text.

    Raises:
        UsageError: for a parameter that does not exist or is missing, or for a value of the wrong
            type or out of range.
    """
    known = parameters_of(kind)
    if not values.keys() <= {one.word for one in known} | {one.name for one in known}:
        known = parameters_of(kind, installed=True)
    names = {one.word: one.name for one in known} | {one.name: one.name for one in known}
    for word in values:
        if word not in names:
            raise _unknown(word, kind, [one.word for one in known])
    given = {names[word]: value for word, value in values.items()}
    for one in known:
        if one.required and one.name not in given:
            raise UsageError(f"{one.word!r} is missing", hint=one.doc.help)
    return made_of(
        kind, {one.name: _value(one, given[one.name]) for one in known if one.name in given}
    )


def perform(
    verb: Verb,
    parameters: Any,
    context: Context,
    *,
    save: Path | bool = True,
    step: str | None = None,
) -> Any:
    """Run a verb and return its result.

    Args:
        save: True writes where the parameters say; a path writes there and replaces what is there;
            False keeps an adapter in memory.
        step: name of the step in a recipe; errors then carry it.

    Raises:
        LoramergeError: of the verb.
    """
    if step is None and context.device is not None:
        _check_device(verb, context)
    view = save if isinstance(save, Path) and verb.gives == "report" else None
    if view is not None and view.suffix.lower() != ".json":
        context = replace(context, details=True)
    try:
        if save is False and verb.compute is not None:
            return verb.compute(parameters, context)
        if isinstance(save, Path) and view is None:
            parameters = replace(parameters, output=str(save), force=True)
        result = _run_of(verb, parameters)(parameters, context)
        if view is not None:
            _write_report(verb, result, view)
    except LoramergeError as error:
        error.step = error.step or step
        raise
    return result


def _run_of(verb: Verb, parameters: Any) -> Callable[[Any, Context], Any]:
    """Return the function that takes these parameters: those of one file, or of several."""
    for_files = verb.for_files
    return for_files.run if for_files and isinstance(parameters, for_files.parameters) else verb.run


def steps_done(parameters: Any, result: Any) -> Iterable[tuple[Any, Any]]:
    """Return pairs of parameters and results: the steps of a recipe that repeats a command."""
    steps = getattr(parameters, "repeating_steps", None)  # `train` has `steps`
    return [(parameters, result)] if steps is None else typing.cast(Any, steps(result))


def _check_device(verb: Verb, context: Context) -> None:
    """Refuse a device that does not exist before any work; say so if an existing one is not used."""
    from loramerge.algebra.arrays import check_device

    if check_device(context.device) is not None and not verb.uses_device:
        context.notify(Note((f"{verb.name} runs on the CPU and ignores ", Setting("device"))))


def _write_report(verb: Verb, result: Any, path: Path) -> None:
    """Write a report as JSON, as an HTML page, or as a plot, by the name of the file."""
    from loramerge.files.writer import write_bytes
    from loramerge.report.views import report_of, view_of

    if path.suffix.lower() != ".json":
        write_bytes(path, view_of(report_of(verb.name, result), path), force=True)
        return
    text = json.dumps(result.json(), ensure_ascii=False, indent=2, default=str)
    write_bytes(path, (text + "\n").encode("utf-8", "replace"), force=True)


# --- checking values ----------------------------------------------------------------------------


def _unknown(word: str, kind: type[Any], words: Sequence[str]) -> UsageError:
    from loramerge.habits import advice_on_parameter

    hint = advice_on_parameter(word, kind.__name__.lower().removesuffix("files"), words)
    return UsageError(f"{word!r} is not a parameter", expected=", ".join(words), hint=hint)


def _value(one: Parameter, value: Any) -> Any:
    if value is None and (one.optional or not one.required):
        return one.default
    if not one.many:
        return _single(one, value)
    if isinstance(value, (str, PathLike)) or not isinstance(value, Iterable):
        value = (value,)
    return tuple(_single(one, part) for part in value)


def _single(one: Parameter, value: Any) -> Any:
    """Return one value as the parameters hold it.

    Raises:
        UsageError: naming the parameter, what it takes and what was given.
    """
    if one.weighted:
        if isinstance(value, (str, PathLike)):
            from loramerge.steps.references import parse_reference

            return parse_reference(fspath(value))
        if isinstance(value, one.kind):
            return value
        raise wrong(one, "an adapter", value)
    if one.per_module and isinstance(value, Mapping):
        from loramerge.algebra.rules import rules_of

        rules_of(value, one)  # refuses what the parameter does not take
        return dict(value)
    return checked(one, value)
