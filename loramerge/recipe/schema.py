"""Validation of steps, by pydantic models that are made from the verbs' parameters."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from loramerge.algebra.rules import rules_of
from loramerge.algebra.weights import Weight, weight_of
from loramerge.errors import LoramergeError, UsageError, suggestion
from loramerge.habits import advice_on_parameter
from loramerge.parameters import checked, in_current_words, made_of
from loramerge.recipe.mistakes import Mistakes, Place
from loramerge.recipe.variables import as_text
from loramerge.steps.parameters import Parameter, Verb, parameters_of
from loramerge.steps.references import Reference, parse_reference

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationInfo

__all__ = ["TEXT", "Each", "model_of", "validate"]

TEXT = {"type": "string"}  # in the JSON Schema


@dataclass(frozen=True)
class Each(Reference):
    """A reference to the results of a step in all cases of a sweep."""


def validate(
    verb: Verb, content: Mapping[str, Any], place: Place, root: Path | None, mistakes: Mistakes
) -> Any:
    """Return the parameters of a step's content, after noting its mistakes.

    Unknown words are left out, so that the rest can be checked; None if nothing remains. References
    to all cases of a step are `Each`.
    """
    from pydantic import ValidationError

    content = in_current_words(verb.parameters, content)
    model = model_of(verb)
    words, stated = [one.word for one in _parameters(verb)], set(content)
    while True:
        try:
            found = model.model_validate(dict(content), context={"root": root})
            break
        except ValidationError as error:
            errors = error.errors(include_url=False)
        for one in errors:  # a word left out for another mistake is not absent
            if one["type"] != "missing" or one["loc"][0] not in stated:
                _note(one, verb, words, place, mistakes)
        rest = _without(content, [one["loc"] for one in errors])
        if rest == content:
            return None
        content = rest
    values = {name: getattr(found, name) for name in found.model_fields_set}
    return made_of(
        verb.parameters,
        {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()},
    )


def _without(content: Mapping[str, Any], places: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Return a step's content without some places: words, or items of lists."""
    kept = dict(content)
    for word in {str(loc[0]) for loc in places if loc}:
        items = {loc[1] for loc in places if len(loc) > 1 and str(loc[0]) == word}
        value = kept.get(word)
        whole = any(len(loc) == 1 and str(loc[0]) == word for loc in places)
        if isinstance(value, list) and not whole:
            kept[word] = [item for i, item in enumerate(value) if i not in items]
        else:
            kept.pop(word, None)
    return kept


def _parameters(verb: Verb) -> list[Parameter]:
    return [one for one in parameters_of(verb.parameters, installed=True) if one.doc.recipe]


def model_of(verb: Verb) -> type[BaseModel]:
    """Return the model of a verb with the parameters and choices that are known by now."""
    fields = _parameters(verb)
    choices = [None if one.doc.choices is None else tuple(one.doc.choices()) for one in fields]
    kind: Any = verb.parameters
    return _model_of(kind, tuple(zip(fields, choices, strict=True)))


@cache
def _model_of(
    kind: Any, parameters: tuple[tuple[Parameter, tuple[str, ...] | None], ...]
) -> type[BaseModel]:
    from pydantic import ConfigDict, Field, create_model

    fields: dict[str, Any] = {
        one.name: (
            _type(one, choices),
            Field(... if one.required else _default(one), alias=one.word, description=one.doc.help),
        )
        for one, choices in parameters
    }
    return create_model(
        kind.__name__,
        __config__=ConfigDict(extra="forbid"),
        __doc__=kind.__doc__,
        **fields,
    )


def _default(one: Parameter) -> Any:
    return list(one.default) if isinstance(one.default, tuple) else one.default


def _type(one: Parameter, choices: tuple[str, ...] | None) -> Any:
    """Return the type of a parameter in a recipe; text and numbers are not converted."""
    from pydantic import Strict

    if one.refers:
        inner: Any = _reference_type(one)
    elif choices is not None:
        inner = typing.Literal[choices]
    elif typing.get_origin(one.kind) is typing.Literal:
        inner = one.kind
    else:
        inner = Annotated[one.kind, Strict(), *one.bounds]
    if one.doc.number is not None:
        inner = _or_number(inner, one)
    if one.per_module:
        inner = _or_rules(inner, one)
    whole = list[inner] if one.many else inner
    return whole | None if one.optional else whole


def _or_rules(inner: Any, one: Parameter) -> Any:
    """Return a type of one value, or of a mapping of values per module."""
    from pydantic import ValidatorFunctionWrapHandler, WrapValidator

    def read(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if not isinstance(value, Mapping):
            return handler(value)
        try:
            rules_of(value, one)
        except LoramergeError as error:
            raise _Refused(error) from None
        return dict(value)

    return Annotated[inner, WrapValidator(read), _RulesInSchema()]


def _or_number(inner: Any, one: Parameter) -> Any:
    """Return a type of a text, for which a number may stand."""
    from pydantic import BeforeValidator, WithJsonSchema

    def read(value: Any) -> str:
        try:
            text: str = checked(one, value)
        except LoramergeError as error:
            raise _Refused(error) from None
        return text

    number = "integer" if one.doc.number is int else "number"
    schema = {"anyOf": [TEXT, {"type": number}]}
    return Annotated[inner, BeforeValidator(read), WithJsonSchema(schema)]


class _RulesInSchema:
    """Adds the mapping of values per module to the JSON Schema of one value."""

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        return {"anyOf": [handler(core), {"type": "object"}]}


def _reference_type(one: Parameter) -> Any:
    from pydantic import PlainValidator, WithJsonSchema

    words = one.items if one.kind is Reference else ()

    def read(value: Any, info: ValidationInfo) -> Any:
        root = (info.context or {}).get("root")
        return _reference(value, root, words=words, many=one.many)

    schema: dict[str, Any] = {"type": "string"}
    if words or one.many:
        schema = {"anyOf": [{"type": "string"}, _mapping_schema(words, one.many)]}
    return Annotated[Any, PlainValidator(read), WithJsonSchema(schema)]


def _mapping_schema(words: Sequence[str], many: bool) -> dict[str, Any]:
    names = [*words, *(["each"] if many else [])]
    properties: dict[str, Any] = {name: {"type": "string"} for name in names}
    if words:
        properties["weight"] = {"anyOf": [{"type": ["number", "string"]}, {"type": "object"}]}
    return {
        "type": "object",
        "properties": properties,
        "oneOf": [{"required": [name]} for name in names],
        "additionalProperties": False,
    }


def _reference(value: Any, root: Path | None, *, words: Sequence[str], many: bool) -> Any:
    """Return the reference in a text, in `{adapter:, weight:}`, or in `{each:}`.

    Args:
        words: those that may stand for `adapter` there; none where values have no weights.

    Raises:
        ValueError: holding the error.
    """
    try:
        if isinstance(value, str):
            return parse_reference(value, root) if words else _named(value)
        if isinstance(value, Mapping) and (words or many):
            return _mapped(value, words, many=many)
        raise UsageError("expected a name", found=_short(value))
    except LoramergeError as error:
        raise _Refused(error) from None


class _Refused(ValueError):
    """An error on its way through pydantic."""

    def __init__(self, error: LoramergeError) -> None:
        super().__init__(error.problem)
        self.error = error


def _named(value: str) -> str:
    if not value.strip():
        raise UsageError("the name is empty")
    return value


def _mapped(value: Mapping[str, Any], names: Sequence[str], *, many: bool) -> Reference:
    words = [*names, *(["each"] if many else [])]
    known = [*words, "weight"] if names else words
    unknown = [one for one in value if one not in known]
    if unknown:
        raise UsageError(
            f"a reference has no {unknown[0]!r}",
            expected=" or ".join(known),
            hint=suggestion(unknown[0], known),
        )
    given = [one for one in words if one in value]
    if len(given) != 1:
        raise UsageError(
            f"a reference must have exactly one of {' and '.join(words)}", found=_short(value)
        )
    name = value[given[0]]
    if not isinstance(name, str) or not name.strip():
        raise UsageError("expected a name", found=_short(name))
    weight = weight_of(value.get("weight", 1.0), "weight")
    kind = Each if given[0] == "each" else Reference
    says = given[0] == "adapter" and len(names) > 1
    written = "1" if weight == Weight() else weight.text()
    return kind(name, weight, written, says, stated="weight" in value)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _note(error: Any, verb: Verb, words: list[str], place: Place, mistakes: Mistakes) -> None:
    """Note an error of pydantic in our own words."""
    kind, where = error["type"], (*place, *error["loc"])
    word, context = str(error["loc"][0]) if error["loc"] else "", error.get("ctx", {})
    if kind == "extra_forbidden":
        takes = f"{verb.name} takes {', '.join(words)}"
        hint = advice_on_parameter(word, verb.name, words) or takes
        mistakes.add(where, f"{verb.name} has no {word!r}", hint)
    elif kind == "missing":
        mistakes.add(place, f"{verb.name} needs {word!r}")
    elif isinstance(context.get("error"), _Refused):
        mistakes.caught((*where, "="), context["error"].error)
    else:
        expected = error["msg"].removeprefix("Input should be ")
        found = _short(as_text(error["input"]))
        mistakes.add((*where, "="), f"{word}: expected {expected}, found {found!r}"
                     if isinstance(error["input"], str)
                     else f"{word}: expected {expected}, found {found}")  # fmt: skip
