"""Parameters as documented fields of frozen dataclasses.

A parameter is a field `Annotated` with `Doc` (its help) and `Bounds`. Options of the command line, the
schema of recipes and the record of what made a file are derived from these fields, for verbs and for
merge operators alike. Only the standard library is imported here.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from os import PathLike, fspath
from typing import Any, Literal, cast

from loramerge.errors import UsageError
from loramerge.records import record

__all__ = [
    "LARGEST_WHOLE",
    "Bounds",
    "Doc",
    "Parameter",
    "checked",
    "in_current_words",
    "item_word",
    "made_of",
    "parameters_of",
    "value_of",
    "wrong",
]

LARGEST_WHOLE = 2**63 - 1  # of seeds, counts and sizes: what every library takes


@record
class Doc:
    """The meaning of a parameter.

    Args:
        help: one or two sentences.
        flags: option names; `()` derives one from the field's name, `("ARGUMENT",)` style upper case
            makes it positional.
        metavar: placeholder of the value in help.
        completes: what shell completion offers, and what a value names: `adapters`, `bases`, `models`
            (a base, else an adapter), `files` (either), `folders` (of images), `dialects`, or nothing.
        recipe: whether a step of a recipe has it; false for what only a command line needs.
        result: whether it changes what is computed; false for what is only reported.
        words: values that name nothing, where the others name something.
        choices: function that lists the words a value may be; None allows any value of its type.
        former: words of older recipes for it, which are still read, and options that are still taken.
        separated: several values stand in one text, with commas between them.
        number: type of the numbers that may stand for the text, in recipes and in Python.
        path: whether a value is a path that is used unchanged; names are looked up.
    """

    help: str
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    completes: str | None = None
    recipe: bool = True
    result: bool = True
    words: tuple[str, ...] = ()
    choices: Callable[[], Sequence[str]] | None = None
    former: tuple[str, ...] = ()
    separated: bool = False
    number: type[int] | type[float] | None = None
    path: bool = False

    @property
    def positional(self) -> bool:
        """True if the value is given without an option name."""
        return bool(self.flags) and not self.flags[0].startswith("-")


@record
class Bounds:
    """The range of a number.

    Those of `annotated_types` are understood too, which pydantic gets from these; importing that
    package takes a tenth of the time of a whole `resize`.

    Args:
        ge: the least value; `gt`: one that every value is above.
        le: the greatest value; `lt`: one that every value is below.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    @property
    def __is_annotated_types_grouped_metadata__(self) -> Literal[True]:
        return True

    def __iter__(self) -> Iterator[Any]:
        """Yield each as `annotated_types` has it."""
        from annotated_types import Interval

        return iter(Interval(ge=self.ge, gt=self.gt, le=self.le, lt=self.lt))


@record
class Parameter:
    """One parameter, taken apart.

    Args:
        name: of the field; `word`: in recipes and options (`for`, where `program` is the field).
        kind: the type of one value, without `| None` and `tuple[…, ...]`.
        many: whether several values may stand.
        optional: whether None may.
        bounds: further annotations: `Bounds`, or those of `annotated_types`.
        default: `dataclasses.MISSING` where a value must be given.
        holder: field that holds the value in a mapping by name; None where it has a field of its own.
    """

    name: str
    word: str
    kind: Any
    many: bool
    optional: bool
    doc: Doc
    bounds: tuple[Any, ...]
    default: Any
    holder: str | None = None

    @property
    def required(self) -> bool:
        """True if a value must be given."""
        return self.default is dataclasses.MISSING

    @property
    def per_module(self) -> bool:
        """True if a mapping of values per module may stand for its value, in the form of a weight."""
        return self.holder is not None and not self.many

    @property
    def refers(self) -> bool:
        """True if its values are names of adapters, bases or folders."""
        return self.doc.completes in ("adapters", "bases", "models", "files", "folders")

    @property
    def weighted(self) -> bool:
        """True if its values are adapters or checkpoints with weights (`references.Reference`)."""
        return self.refers and self.kind is not str

    @property
    def items(self) -> tuple[str, ...]:
        """The words for the name in a mapping of a name and its weight, of which one stands there."""
        own = item_word(self.doc.completes)
        return (own, item_word("adapters")) if self.doc.completes == "models" else (own,)

    def names(self, value: Any) -> bool:
        """Return whether a value names an adapter, base or folder, and is not a word of its own."""
        return self.refers and value is not None and value not in self.doc.words


def item_word(completes: str | None) -> str:
    """Return the word for one of several things with weights: `{adapter: style, weight: 0.5}`.

    Args:
        completes: what they are, see `Doc`.
    """
    return "model" if completes in ("bases", "models") else "adapter"


def parameters_of(kind: type[Any], *, installed: bool = False) -> tuple[Parameter, ...]:
    """Return the parameters of a dataclass, in order.

    A class with a class method `held_parameters` has further ones, which can change while the
    process runs: `mix` has those of the merge operators that are known.

    Args:
        installed: search installed packages for further ones first.
    """
    own = _fields_of(cast(Any, kind))
    held = getattr(kind, "held_parameters", None)
    return own if held is None else (*own, *held(installed=installed))


@cache
def _fields_of(kind: Any) -> tuple[Parameter, ...]:
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = [(f, hints[f.name]) for f in dataclasses.fields(kind)]
    return tuple(_parameter(f, hint) for f, hint in fields if _doc_of(hint) is not None)


def _doc_of(hint: Any) -> Doc | None:
    extras = getattr(hint, "__metadata__", ())
    return next((extra for extra in extras if isinstance(extra, Doc)), None)


def _parameter(found: dataclasses.Field[Any], hint: Any) -> Parameter:
    inner, *extras = typing.get_args(hint)
    doc = _doc_of(hint)
    assert doc is not None
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


def in_current_words(kind: type[Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a recipe's step with former words replaced by today's.

    A former word beside the one of today stays, and is refused as unknown.
    """
    today = {old: one.word for one in parameters_of(kind) for old in one.doc.former}
    return {
        word if today.get(word) in (None, *content) else today[word]: value
        for word, value in content.items()
    }


def value_of(parameters: Any, one: Parameter) -> Any:
    """Return the value of one of the parameters; a held one that was not given has its default."""
    if one.holder is None:
        return getattr(parameters, one.name)
    return getattr(parameters, one.holder).get(one.name, one.default)


def made_of(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """Return parameters of a dataclass from checked values by name.

    Values of held parameters go into the mapping that holds them; None counts as not given there.
    """
    known = {one.name: one for one in parameters_of(kind)}
    own: dict[str, Any] = {}
    held: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        holder = known[name].holder
        if holder is None:
            own[name] = value
        elif value is not None and value != ():
            held.setdefault(holder, {})[name] = value
    return kind(**own, **held)


def checked(one: Parameter, value: Any) -> Any:
    """Return a single value, which is neither an adapter nor one of several, as a parameter holds it.

    Raises:
        UsageError: naming the parameter, what it takes and what was given.
    """
    choices: Sequence[Any] | None = None if one.doc.choices is None else one.doc.choices()
    if typing.get_origin(one.kind) is typing.Literal:
        choices = typing.get_args(one.kind)
    if choices is not None:
        if value not in choices:
            raise wrong(one, " or ".join(map(repr, choices)), value)
        return value
    if one.kind is bool:
        if not isinstance(value, bool):
            raise wrong(one, "True or False", value)
        return value
    if one.kind is str:
        if isinstance(value, (str, PathLike)):
            return fspath(value)
        if one.doc.number is not None:
            _number(one, one.doc.number, value, "text or ")
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            raise wrong(one, "text", value)
        return str(value)
    return _number(one, one.kind, value)


def _number(one: Parameter, kind: type, value: Any, before: str = "") -> int | float:
    whole = kind is int
    word = f"{before}a whole number" if whole else f"{before}a number"
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        number = value.__index__() if whole else float(value)
    except (TypeError, ValueError, AttributeError):
        raise wrong(one, word, value) from None
    except OverflowError:
        raise wrong(one, "a number that a float can hold", value) from None
    if whole and abs(number) > LARGEST_WHOLE:
        raise wrong(one, f"a whole number of at most {LARGEST_WHOLE}", value)
    for bound in one.bounds:
        for name, (holds, words) in _BOUNDS.items():
            limit = getattr(bound, name, None)
            if limit is not None and not holds(number, limit):
                raise wrong(one, f"{word} {words} {limit}", value)
    return cast("int | float", number)


_BOUNDS: dict[str, tuple[Callable[[float, Any], bool], str]] = {
    "ge": (lambda value, limit: value >= limit, "of at least"),
    "gt": (lambda value, limit: value > limit, "above"),
    "le": (lambda value, limit: value <= limit, "of at most"),
    "lt": (lambda value, limit: value < limit, "below"),
}


def wrong(one: Parameter, expected: str, found: Any) -> UsageError:
    """Return the error for a value that a parameter does not take."""
    try:
        shown = repr(found)
    except ValueError:  # Python does not print numbers of thousands of digits
        shown = "a number of thousands of digits"
    if len(shown) > _LONGEST:
        shown = f"{shown[:_LONGEST]}…"
    return UsageError(f"{one.word} cannot be {shown}", expected=expected)


_LONGEST = 200  # characters of a value that an error shows
