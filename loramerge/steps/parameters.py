"""How a verb is said: parameters with their meaning, the verb itself, and how it is run.

A parameter is a dataclass field `Annotated` with `Doc` (its help) and bounds from `annotated_types`.
Options of the command line, the schema of recipes and the record of what made a file are derived
from these fields.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from loramerge.events import Notify, ignore

if TYPE_CHECKING:
    from loramerge.adapter import Adapter

__all__ = [
    "Context",
    "Doc",
    "ForFiles",
    "Parameter",
    "Verb",
    "command_words",
    "in_current_words",
    "parameters_of",
    "stated",
]


@dataclass(frozen=True)
class Doc:
    """What a parameter means.

    Args:
        help: one or two sentences.
        flags: option names; `()` derives one from the field's name, `("ARGUMENT",)` style upper case
            makes it positional.
        metavar: what stands for the value in help.
        completes: what shell completion offers, and what a value names: `adapters`, `bases`, `files`
            (either), `folders` (of pictures), `dialects`, or nothing.
        recipe: whether a step of a recipe has it; false for what only a command line needs.
        result: whether it changes what is computed; false for what is only reported.
        words: values that name nothing, where the others name something.
        former: what recipes called it before; they are still read.
    """

    help: str
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    completes: str | None = None
    recipe: bool = True
    result: bool = True
    words: tuple[str, ...] = ()
    former: tuple[str, ...] = ()

    @property
    def positional(self) -> bool:
        """Whether the value stands without an option name."""
        return bool(self.flags) and not self.flags[0].startswith("-")


@dataclass(frozen=True)
class Parameter:
    """One field of a verb's parameters, taken apart.

    Args:
        name: of the field; `word`: as recipes and options say it (`for`, where `program` is the field).
        kind: the type of one value, without `| None` and `tuple[…, ...]`.
        many: whether several values may stand.
        optional: whether None may.
        bounds: further annotations, those of `annotated_types`.
        default: `dataclasses.MISSING` where a value must be given.
    """

    name: str
    word: str
    kind: Any
    many: bool
    optional: bool
    doc: Doc
    bounds: tuple[Any, ...]
    default: Any

    @property
    def required(self) -> bool:
        """Whether a value must be given."""
        return self.default is dataclasses.MISSING

    @property
    def refers(self) -> bool:
        """Whether its values are names of adapters, bases or folders."""
        return self.doc.completes in ("adapters", "bases", "files", "folders")

    @property
    def weighted(self) -> bool:
        """Whether its values are adapters with weights (`references.Reference`)."""
        return self.refers and self.kind is not str

    def names(self, value: Any) -> bool:
        """Say whether a value names an adapter, base or folder, and is no word of its own."""
        return self.refers and value is not None and value not in self.doc.words


def in_current_words(kind: type[Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a recipe's step with the words of today in the place of former ones.

    A former word beside the one of today stays, and is refused as unknown.
    """
    today = {old: one.word for one in parameters_of(kind) for old in one.doc.former}
    return {
        word if today.get(word) in (None, *content) else today[word]: value
        for word, value in content.items()
    }


def parameters_of(kind: type[Any]) -> tuple[Parameter, ...]:
    """Return the fields of a verb's dataclass of parameters, in order."""
    return _parameters_of(cast(Any, kind))


@cache
def _parameters_of(kind: Any) -> tuple[Parameter, ...]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return tuple(_parameter(f, hints[f.name]) for f in dataclasses.fields(kind))


def _parameter(found: dataclasses.Field[Any], hint: Any) -> Parameter:
    inner, *extras = typing.get_args(hint)
    doc = next(extra for extra in extras if isinstance(extra, Doc))
    optional = isinstance(inner, types.UnionType) or typing.get_origin(inner) is typing.Union
    if optional:
        inner = next(arg for arg in typing.get_args(inner) if arg is not type(None))
    many = typing.get_origin(inner) is tuple
    if many:
        inner = typing.get_args(inner)[0]
    long = next((flag for flag in doc.flags if flag.startswith("--")), f"--{found.name}")
    bounds = tuple(extra for extra in extras if not isinstance(extra, Doc))
    word = long.removeprefix("--").replace("-", "_")
    return Parameter(found.name, word, inner, many, optional, doc, bounds, found.default)


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
class ForFiles:
    """The same verb for several files, which is what its command does.

    Args:
        parameters: a frozen dataclass with `of(path)`, which gives the verb's parameters for one file.
        run: function of these parameters and a context; it returns a `batch.FilesResult`.
    """

    parameters: type[Any]
    run: Callable[[Any, Context], Any]


@dataclass(frozen=True)
class Verb:
    """An operation: one step of a recipe, one command, one function of Python.

    Args:
        parameters: a frozen dataclass. It may have `settled()`, which returns the same parameters
            in the form that is recorded, and `steps(result)`, which returns what a recipe
            needs to repeat a command, as pairs of parameters and results.
        gives: an adapter, a checkpoint or a picture (always written), or a report.
        run: function of parameters and a context that does everything, writing included. The result
            has `json()`, and may have `output` (a path), `exit_code` and, for adapters, `adapter`.
        predict: function of parameters and a context that predicts the result from headers; None
            for a verb that recipes do not have.
        compute: for adapters, `run` without writing; the result holds the adapter.
        several: for a command that takes several files.
        uses_device: whether it computes with torch if a device is given.
    """

    name: str
    parameters: type[Any]
    gives: Literal["adapter", "checkpoint", "picture", "report"]
    run: Callable[[Any, Context], Any]
    predict: Callable[[Any, Context], Any] | None
    compute: Callable[[Any, Context], Any] | None = None
    for_files: ForFiles | None = None
    uses_device: bool = False

    @property
    def in_recipes(self) -> bool:
        """Whether it can be a step of a recipe."""
        return self.predict is not None

    @property
    def writes(self) -> bool:
        """Whether it writes adapters or checkpoints, whose headers then say what made them."""
        return self.gives in ("adapter", "checkpoint")


def command_words(name: str, parameters: Any) -> tuple[str, ...]:
    """Return the command line that says the same: `("loramerge", "mix", "a:0.5", "-o", "half")`.

    Arguments come first, then options, what is written last. Defaults are left out.
    """
    arguments, options, output = [], [], []
    for one in parameters_of(type(parameters)):
        value = getattr(parameters, one.name)
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
        value = getattr(parameters, one.name)
        if one.doc.recipe and (one.required or value != one.default):
            yield one, value
