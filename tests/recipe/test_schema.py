"""The JSON Schema of recipes: every verb and word is in it, and it agrees with the engine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest

from loramerge.cli.main import group
from loramerge.errors import RecipeError, UsageError
from loramerge.parameters import checked
from loramerge.recipe.json_schema import json_schema
from loramerge.recipe.recipe import recipe_of
from loramerge.recipe.registry import known_verbs
from loramerge.recipe.text import parse_text
from loramerge.steps.parameters import Doc, parameters_of

SCHEMA = json_schema()
STEP = SCHEMA["properties"]["steps"]["additionalProperties"]
VERBS = list(known_verbs())

_TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int,
    "number": (int, float),
}  # fmt: skip
KEYWORDS = {
    "type", "properties", "required", "additionalProperties", "items", "minItems", "minProperties",
    "anyOf", "oneOf", "const", "enum", "pattern", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "description", "title", "default", "$schema", "$defs", "$ref",
}  # fmt: skip


def valid(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value fits a schema, as far as ours use the language."""
    assert set(schema) <= KEYWORDS, set(schema) - KEYWORDS
    if "$ref" in schema:
        return valid(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema and not any(valid(value, s) for s in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(valid(value, s) for s in schema["oneOf"]) != 1:
        return False
    if "const" in schema and (value != schema["const"] or isinstance(value, bool)):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(_is(value, kind) for kind in kinds):
            return False
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        return False
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return (
            value >= schema.get("minimum", value) and value <= schema.get("maximum", value)
            and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
            and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
        )  # fmt: skip
    if isinstance(value, list):
        return len(value) >= schema.get("minItems", 0) and all(
            valid(v, schema["items"]) for v in value if "items" in schema
        )
    if isinstance(value, dict):
        return _fits(value, schema)
    return True


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _fits(value: dict[str, Any], schema: dict[str, Any]) -> bool:
    properties, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
    if any(name not in value for name in schema.get("required", ())):
        return False
    if len(value) < schema.get("minProperties", 0):
        return False
    for name, part in value.items():
        inner = properties.get(name, rest)
        if inner is False or (isinstance(inner, dict) and not valid(part, inner)):
            return False
    return True


def test_the_small_validator_is_not_vacuous() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}},
              "required": ["a"],               "additionalProperties": False}  # fmt: skip
    assert valid({"a": 1}, schema)
    for wrong in ({}, {"a": 0}, {"a": True}, {"a": "1"}, {"a": 1, "b": 2}, [], 3):
        assert not valid(wrong, schema)


# ---- completeness


@pytest.mark.parametrize("name", VERBS)
def test_every_word_of_every_verb(name: str) -> None:
    verb = known_verbs()[name]
    said = {one.word: one for one in parameters_of(verb.parameters) if one.doc.recipe}
    schema = STEP["properties"][name]
    assert set(schema["properties"]) == set(said)
    assert set(schema.get("required", ())) == {word for word, one in said.items() if one.required}
    assert schema["additionalProperties"] is False
    for word, one in said.items():
        assert schema["properties"][word]["description"] == one.doc.help
        assert "$ref" not in json.dumps(schema["properties"][word]) or SCHEMA.get("$defs")


def test_steps_do_one_thing() -> None:
    assert set(STEP["properties"]) == {*VERBS, "save"}
    assert [option["required"] for option in STEP["oneOf"]] == [[name] for name in VERBS]
    assert VERBS == ["bake", "diff", "inspect", "mix", "resize"] or set(VERBS) >= {"bake", "mix"}


@pytest.mark.parametrize("name", VERBS)
def test_help_is_the_doc_of_each_field(name: str, run) -> None:
    """Options of a command are the parameters of its verb, in their words."""
    with click.Context(group) as context:
        command = group.get_command(context, name)
        assert command is not None
        helps = {o.name: getattr(o, "help", None) for o in command.params}
    text = " ".join(run.ok(name, "--help").out.split())
    for one in parameters_of(known_verbs()[name].parameters):
        if one.doc.positional or one.name not in helps:
            continue
        assert helps[one.name] == one.doc.help
        assert isinstance(one.doc, Doc)
        assert one.doc.help.split(" [")[0].split()[0] in text
    missing = [o for o in helps if o not in text and o is None]
    assert not missing


def test_the_command_prints_it(run) -> None:
    assert run.ok("schema").json == SCHEMA
    assert run.ok("schema", "--json-file", "s.json").out == ""
    assert json.loads(Path("s.json").read_text("utf-8")) == SCHEMA


def test_the_schema_names_its_draft_and_its_words() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(SCHEMA["properties"]) == {"version", "vars", "inputs", "sweep", "steps"}
    assert SCHEMA["required"] == ["version", "steps"]


# ---- agreement with the engine

GOOD = [
    "mix: {adapters: [a.safetensors, 'b.safetensors:0.5']}",
    "mix: {adapters: [{adapter: a.safetensors, weight: 0.5}]}",
    "mix: {adapters: [{adapter: a.safetensors, weight: {default: 1, te1: 0, match: {'*attn2*': 0.5}}}]}",
    "mix: {adapters: [a.safetensors], rank: 3, method: linear, embeddings: none}",
    "mix: {adapters: [a.safetensors], rank: '${r}'}",
    "mix: {adapters: [a.safetensors], for: comfyui, dtype: float16}",
    "resize: {adapter: a.safetensors, energy: 1}",
    "resize: {adapter: 'a.safetensors:0.5', ratio: 1.5}",
    "resize: {adapter: {adapter: a.safetensors, weight: -1}, max_size: 50%}",
    "mix: {adapters: [a.safetensors], scale: 0.5}",
    "mix: {adapters: [a.safetensors], scale: '0.5'}",
    "mix: {adapters: [a.safetensors], scale: norm-match}",
    "merge: {models: [base.safetensors, base.safetensors], base: base.safetensors, scale: 2}",
    "resize: {adapter: a.safetensors, max_size: 60000}",
    "bake: {base: base.safetensors, adapters: [a.safetensors], seed: 0, skip_missing: [all]}",
    "bake: {base: base.safetensors, dtype: float16}",
]
BAD = [
    "mix: {adapters: a.safetensors}",
    "mix: {adapters: [3]}",
    "mix: {}",
    "mix: {adapters: [{weight: 1}]}",
    "mix: {adapters: [{adapter: a.safetensors, each: x}]}",
    "mix: {adapters: [{adaptor: a.safetensors}]}",
    "mix: {adapters: [a.safetensors], rank: 0}",
    "mix: {adapters: [a.safetensors], rank: 1.5}",
    "mix: {adapters: [a.safetensors], rank: '3'}",
    "mix: {adapters: [a.safetensors], rank: true}",
    "mix: {adapters: [a.safetensors], scale: true}",
    "mix: {adapters: [a.safetensors], scale: [0.5]}",
    "mix: {adapters: [a.safetensors], max_size: 60000.5}",
    "mix: {adapters: [a.safetensors], to: 3}",
    "mix: {adapters: [a.safetensors], ranks: 3}",
    "mix: {adapters: [a.safetensors], output: x}",
    "mix: {adapters: [a.safetensors], method: magic}",
    "mix: {adapters: [a.safetensors], embeddings: some}",
    "resize: {adapter: {each: x}, rank: 3}",
    "resize: {adapter: a.safetensors, energy: 0}",
    "resize: {adapter: a.safetensors, energy: 1.1}",
    "resize: {adapter: a.safetensors, ratio: 1}",
    "resize: {rank: 3}",
    "bake: {adapters: [a.safetensors]}",
    "bake: {base: base.safetensors, seed: -1}",
    "bake: {base: {adapter: x}, dtype: float16}",
    "mix: a",
    "fly: {}",
    "mix: {adapters: [a]}, resize: {}",
]


def content(step: str) -> Any:
    text = f"version: 1\nvars: {{r: 2}}\nsteps: {{x: {{{step}, save: x.safetensors}}}}\n"
    found, mistakes = parse_text(text, "r")
    assert not mistakes.found
    return found


@pytest.mark.parametrize("step", GOOD)
def test_valid_recipes_fit_the_schema(step: str, work) -> None:
    assert recipe_of(content(step), Path()).tasks
    assert valid(content(step), SCHEMA)


@pytest.mark.parametrize("step", BAD)
def test_refused_recipes_do_not_fit_the_schema(step: str, work) -> None:
    with pytest.raises(RecipeError):
        recipe_of(content(step), Path())
    assert not valid(content(step), SCHEMA)


def test_a_number_stands_for_the_text_that_is_one(work) -> None:
    """In recipes and in Python as on the command line, also from a sweep's variable."""

    def task(text: str) -> Any:
        (found,) = recipe_of(content(text), Path()).tasks.values()
        return found.parameters

    number, text, variable = (
        task(f"mix: {{adapters: [a.safetensors], scale: {scale}, max_size: {size}}}")
        for scale, size in (("2", "60000"), ("'2'", "'60000'"), ("'${r}'", "60000"))
    )
    assert number == text == variable
    assert number.operation().scale == 2.0
    asked = [
        one
        for verb in known_verbs().values()
        for one in parameters_of(verb.parameters)
        if one.doc.number is not None
    ]
    assert {one.word for one in asked} >= {"scale", "max_size", "vram", "clip_skip", "save_every"}
    for one in asked:
        assert checked(one, 3) == checked(one, "3") == "3"
        with pytest.raises(UsageError, match=one.word):
            checked(one, True)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("inputs: {a: a.safetensors}", True), ("inputs: {a: {path: a.safetensors}}", True),
        ("inputs: {a: 3}", False), ("inputs: {a: {sha256: x}}", False),
        ("inputs: {a: {path: x, sha256: short}}", False), ("sweep: {w: [1, 2]}", True),
        ("sweep: [{w: 1}, {w: 2}]", True), ("sweep: {w: {files: '*.safetensors'}}", True),
        ("sweep: 3", False), ("sweep: []", False), ("sweep: {w: {file: x}}", False),
        ("vars: [1]", False), ("step: {}", False), ("version: 2", False),
    ],
)  # fmt: skip
def test_the_top(text: str, fits: bool, work) -> None:
    step = "steps: {x: {mix: {adapters: [a.safetensors]}, save: x.safetensors}}\n"
    found, _ = parse_text(("" if text.startswith("version") else "version: 1\n") + step + text, "r")
    assert valid(found, SCHEMA) == fits
    if fits and "sweep" not in text:
        recipe_of(found, Path())
    elif not fits:
        with pytest.raises(RecipeError):
            recipe_of(found, Path())
