"""Verbs: their parameters, their results, and their context."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loramerge.events import Notify, ignore
from loramerge.parameters import Doc, Parameter, parameters_of, value_of
from loramerge.records import record

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from loramerge.adapter import Adapter
    from loramerge.algebra.interference import Interference
    from loramerge.steps.kept import Kept

__all__ = [
    "Context",
    "Doc",
    "Explained",
    "ForFiles",
    "Parameter",
    "Verb",
    "command_words",
    "parameters_of",
    "stated",
]


@record
class Context:
    """Settings of a run that do not change its result.

    Args:
        threads: worker threads; None takes all processors, and one to train and draw.
        device: torch device; None is numpy for decompositions, and a GPU, if there is one, to train and
            draw.
        notify: told of progress, notes and warnings.
        strip: do not record in headers how files were made.
        known: name → adapter in memory, or path; searched before files.
        root: folder that relative paths start from; None is the current one.
        allow_import: import any class that parameters name. Recipes and headers may come from
            anyone, and importing runs code, so they cannot set this.
        skip_unknown: leave out unknown tensors of adapters, as the run that made an older file did.
        allow_nonfinite: copy NaN and infinity of bases, as the run that made an older file did.
        allow_loss: write results that rounding took much from, as the run that made an older file did.
        allow_again: add adapters that a base holds already, as the run that made an older file did.
        model_threads: of torch to train and draw, if not `threads`, which may be a share of one task.
        executor: computes tensors of checkpoints in other processes, see `stream.parts`; None computes
            them here.
        details: add the figures that only a page or a picture of the result shows.
        models: keeps the model that drew last, for later runs of the process; None keeps none.
        kept: keeps opened adapters, likewise.
    """

    threads: int | None = None
    device: str | None = None
    notify: Notify = ignore
    strip: bool = False
    known: Mapping[str, Adapter | Path] = field(default_factory=dict)
    root: Path | None = None
    allow_import: bool = False
    skip_unknown: bool = False
    allow_nonfinite: bool = False
    allow_loss: bool = False
    allow_again: bool = False
    model_threads: int | None = None
    executor: Executor | None = None
    details: bool = False
    models: MutableMapping[Any, Any] | None = None
    kept: Kept | None = None

    @property
    def torch_threads(self) -> int:
        """Threads of torch to train and draw: one by default, because sums over several differ in
        bits."""
        return self.model_threads or self.threads or 1


@record
class ForFiles:
    """The verb for several files, as its command runs it.

    Args:
        parameters: a `batch.FileParameters`; it gives the verb's parameters for each result of a file.
        run: function of these parameters and a context; it returns a `batch.FilesResult`.
    """

    parameters: type[Any]
    run: Callable[[Any, Context], Any]


@record
class Explained:
    """The relations between the inputs of a step.

    Args:
        names: of the inputs.
        found: their relations, per pair and per block.
    """

    names: tuple[str, ...]
    found: Interference

    def json(self) -> dict[str, Any]:
        """Return the object that `plan --explain --json` prints."""
        return {"inputs": list(self.names), **self.found.json()}


@record
class Verb:
    """An operation: one step of a recipe, one command, one function of Python.

    Args:
        parameters: a frozen dataclass. It may have `settled()`, which returns the same parameters
            in the form that is recorded, and `repeating_steps(result)`: what a recipe
            needs to repeat a command, as pairs of parameters and results.
        gives: an adapter, a checkpoint, a picture or a document (always written), or a report.
        run: function of parameters and a context that does everything, writing included. The result
            has `json()`, and may have `output` (a path), `exit_code` and, for adapters, `adapter`.
        predict: function of parameters and a context that predicts the result from headers; None
            for a verb that recipes do not have.
        compute: for adapters, `run` without writing; the result holds the adapter.
        several: for a command that takes several files.
        uses_device: whether it computes with torch if a device is given.
        distributes: whether it can leave parts of its work to an executor.
        large: bytes of a file to compute from which the command does so by itself; None is never.
        explain: function of parameters and a context that computes without writing, and returns how
            the inputs relate.
        forecast: function of parameters and a context that measures without writing what `predict`
            cannot know from headers; it returns plain values by name.
        output_path: function of parameters and a context that returns the path that `run` writes to,
            from headers; the path may exist. None for a verb that gives a report.
    """

    name: str
    parameters: type[Any]
    gives: Literal["adapter", "checkpoint", "picture", "document", "report"]
    run: Callable[[Any, Context], Any]
    predict: Callable[[Any, Context], Any] | None
    compute: Callable[[Any, Context], Any] | None = None
    for_files: ForFiles | None = None
    uses_device: bool = False
    distributes: bool = False
    large: int | None = None
    explain: Callable[[Any, Context], Explained] | None = None
    forecast: Callable[[Any, Context], dict[str, Any]] | None = None
    output_path: Callable[[Any, Context], Path] | None = None

    @property
    def in_recipes(self) -> bool:
        """True if it can be a step of a recipe."""
        return self.predict is not None

    @property
    def series(self) -> tuple[str, ...]:
        """Words of parameters of which each of several values gives a result of its own."""
        if self.for_files is None:
            return ()
        found = parameters_of(self.for_files.parameters)
        return tuple(one.word for one in found if one.doc.separated)

    @property
    def writes(self) -> bool:
        """True if it writes adapters or checkpoints, whose headers then say what made them."""
        return self.gives in ("adapter", "checkpoint")


def command_words(name: str, parameters: Any) -> tuple[str, ...]:
    """Return the command line that says the same: `("loramerge", "mix", "a:0.5", "-o", "half")`.

    Arguments come first, then options, what is written last. Defaults are left out.
    """
    arguments, options, output = [], [], []
    for one in parameters_of(type(parameters)):
        value = value_of(parameters, one)
        if not one.required and value == one.default:
            continue
        texts = [_text(one, single) for single in (value if one.many else (value,))]
        if one.kind is float:
            texts = [text.removesuffix(".0") for text in texts]
        flag = max(one.doc.flags, key=len, default=f"--{one.name.replace('_', '-')}")
        if one.doc.positional:
            arguments += texts
        elif one.kind is bool:
            options.append(flag)
        elif one.name == "output":
            output += ["-o", *texts]
        elif one.doc.separated:
            options += [flag, ",".join(texts)]
        else:
            options += [word for text in texts for word in (flag, text)]
    return ("loramerge", name, *arguments, *options, *output)


def _text(one: Parameter, value: Any) -> str:
    """Return a value as an option has it."""
    if one.weighted:
        return str(value.text())
    if not isinstance(value, Mapping):
        return str(value)
    from loramerge.algebra.rules import rules_of

    return rules_of(value, one).text()


def stated(parameters: Any) -> Iterator[tuple[Parameter, Any]]:
    """Yield the parameters of a recipe step whose values are not the defaults, with the values."""
    for one in parameters_of(type(parameters)):
        value = value_of(parameters, one)
        if one.doc.recipe and (one.required or value != one.default):
            yield one, value
