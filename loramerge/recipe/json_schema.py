"""The JSON Schema of recipes, for editors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loramerge import __version__
from loramerge.recipe.registry import known_verbs
from loramerge.recipe.schema import TEXT, model_of

__all__ = ["json_schema"]

_VARIABLE = {"type": "string", "pattern": r"\$\{"}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of recipes; any value may also be a variable, as text."""
    verbs: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    for verb in known_verbs().values():
        schema = model_of(verb).model_json_schema(by_alias=True)
        definitions |= schema.pop("$defs", {})
        for name, one in schema.get("properties", {}).items():
            schema["properties"][name] = _or_variable(
                _or_several(one) if name in verb.series else one
            )
        verbs[verb.name] = schema
    step = {
        "type": "object",
        "properties": verbs | {"save": TEXT | {"description": "File to write."}},
        "oneOf": [{"required": [name]} for name in verbs],
        "additionalProperties": False,
    }
    pinned = {
        "type": "object",
        "properties": {
            "path": TEXT,
            "sha256": {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"},
            "recipe": {
                "type": "object",
                "description": "The recipe that makes it, for when it is not found.",
            },
        },
        "required": ["path"],
        "additionalProperties": False,
    }
    values = {"anyOf": [{"type": "array"}, {"type": "object", "properties": {"files": TEXT},
              "required": ["files"], "additionalProperties": False}]}  # fmt: skip
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A recipe of loramerge {__version__}",
        "type": "object",
        "properties": {
            "version": {"const": 1},
            "vars": {"type": "object"},
            "inputs": {"type": "object", "additionalProperties": {"anyOf": [TEXT, pinned]}},
            "sweep": {
                "anyOf": [
                    {"type": "object", "additionalProperties": values},
                    {"type": "array", "items": {"type": "object"}, "minItems": 1},
                ]
            },
            "steps": {"type": "object", "additionalProperties": step, "minProperties": 1},
        },
        "required": ["version", "steps"],
        "additionalProperties": False,
    }
    return schema | ({"$defs": definitions} if definitions else {})


def _or_several(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a value that may also be a list of such values."""
    one = [part for part in _options({"anyOf": schema["anyOf"]}) if part != {"type": "null"}]
    items = one[0] if len(one) == 1 else {"anyOf": one}
    several = {"type": "array", "items": items, "minItems": 1}
    return schema | {"anyOf": [*schema["anyOf"], several]}


def _or_variable(schema: dict[str, Any]) -> dict[str, Any]:
    about: dict[str, Any] = {
        key: schema[key] for key in ("description", "default", "title") if key in schema
    }
    rest = {key: value for key, value in schema.items() if key not in about}
    if any(part.get("type") == "string" and len(part) == 1 for part in _options(rest)):
        return schema
    return {"anyOf": [*_options(rest), _VARIABLE], **about}


def _options(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from schema["anyOf"] if set(schema) == {"anyOf"} else (schema,)
