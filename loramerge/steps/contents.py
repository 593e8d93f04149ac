"""The ingredients of a file in words, as the recipe in its own header has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loramerge.algebra.weights import shown_number
from loramerge.errors import listed
from loramerge.steps.provenance import RESULT, recipe_in

__all__ = ["contents_of"]

_DEEPEST = 3  # recipes inside of recipes that are told
_MOST = 8  # ingredients that are named
_SEVERAL = ("adapters", "lora", "models", "adapter", "tuned")
_ITEM = ("adapter", "model")


def contents_of(metadata: Mapping[str, str]) -> str | None:
    """Return what a file was made from: `bake of style × 0.8 into sd21.safetensors`.

    None where the header has no recipe of loramerge.
    """
    recipe = recipe_in(metadata)
    return None if recipe is None else _words(recipe, RESULT, _DEEPEST)


def _words(recipe: Mapping[str, Any], step: str, depth: int) -> str | None:
    """Return one step of a recipe in words, None if it is none that can be told."""
    content = recipe["steps"].get(step)
    if not isinstance(content, Mapping):
        return None
    verb = next((name for name in content if name != "save"), None)
    parameters = content.get(verb)
    if verb is None or not isinstance(parameters, Mapping):
        return None
    items = [one for key in _SEVERAL for one in _list(parameters.get(key))]
    parts = [_item(recipe, one, depth) for one in items]
    method = parameters.get("method")
    text = f"{verb}{f' ({method})' if isinstance(method, str) else ''}"
    if parts:
        text += f" of {listed(parts, _MOST)}"
    base = parameters.get("base")
    if isinstance(base, str):
        text += f" {'into' if verb == 'bake' else 'with base'} {_name(recipe, base, depth)}"
    source = parameters.get("checkpoint")
    if isinstance(source, str):
        text += f" from {_name(recipe, source, depth)}"
    return text


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _item(recipe: Mapping[str, Any], item: Any, depth: int) -> str:
    """Return one ingredient: its name, and its weight if that is not 1."""
    if not isinstance(item, Mapping):
        return _name(recipe, str(item), depth)
    name = next((str(item[key]) for key in _ITEM if key in item), "?")
    weight = item.get("weight", 1.0)
    said = _name(recipe, name, depth)
    if isinstance(weight, (int, float)):
        return said if weight == 1 else f"{said} × {shown_number(float(weight))}"
    return f"{said} × weights per module"


def _name(recipe: Mapping[str, Any], name: str, depth: int) -> str:
    """Return an input's file, with what it is made from itself; a step of the recipe as its words."""
    if depth <= 0:
        return name
    entry = recipe["inputs"].get(name)
    if isinstance(entry, Mapping):
        own, path = entry.get("recipe"), str(entry.get("path") or name)
        if isinstance(own, Mapping) and isinstance(own.get("steps"), Mapping):
            words = _words({"inputs": {}, **own}, RESULT, depth - 1)
            if words is not None and not words.startswith(("train", "convert")):
                return f"{path} ({words})"
        return path
    words = _words(recipe, name, depth - 1)
    return name if words is None else f"({words})"
