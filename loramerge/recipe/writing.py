"""Recipes of commands: the steps that a command ran, written as YAML for people to edit."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loramerge.algebra.weights import Weight, weight_content
from loramerge.errors import LoramergeError
from loramerge.files.writer import write_bytes
from loramerge.library.lookup import find
from loramerge.library.paths import bare, below
from loramerge.library.shipped import SHIPPED_BASES, shipped_name
from loramerge.parameters import item_word
from loramerge.recipe.saves import WRITTEN, is_outside
from loramerge.recipe.variables import escape
from loramerge.steps.parameters import stated
from loramerge.steps.references import Reference

__all__ = ["free_name", "recipe_content", "relative_path", "write_recipe", "yaml_text"]


def write_recipe(path: Path, steps: Sequence[tuple[str, Any, Any]]) -> None:
    """Write the recipe of a command that ran; a comment names the option that it needs.

    Args:
        steps: (verb, parameters, result) of each step.

    Raises:
        OutputExists: if the path exists.
    """
    text = yaml_text(recipe_content(steps, path.parent))
    if any(is_outside(path.parent, place) for place in _places(steps)):
        text = f"{_OUTSIDE}\n{text}"
    write_bytes(path, text.encode("utf-8", "replace"))


_OUTSIDE = "# It writes outside of this folder: run it with --allow-outside."


def _places(steps: Sequence[tuple[str, Any, Any]]) -> Iterator[Path]:
    """Yield the places that steps wrote to."""
    for _, parameters, result in steps:
        named = (getattr(parameters, word, None) for word in WRITTEN)
        for place in (getattr(result, "output", None), *named):
            if isinstance(place, (str, Path)):
                yield Path(place)


def yaml_text(content: Mapping[str, Any]) -> str:
    """Return a recipe as YAML."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 120
    yaml.allow_unicode = True
    text = io.StringIO()
    yaml.dump(dict(content), text)
    return text.getvalue()


def recipe_content(steps: Sequence[tuple[str, Any, Any]], root: Path) -> dict[str, Any]:
    """Return the recipe of steps that ran, with paths relative to a folder."""
    inputs: dict[str, str] = {}
    names: dict[str, str] = {}
    written: dict[str, Any] = {}

    def named(text: str, holds: str) -> str:
        """Return the name of the input for a name or path on the command line."""
        place = _locate(text, holds)
        real = os.path.realpath(place)
        if real not in names:
            stem = bare(place.name) or "input"
            names[real] = free_name(stem, {*inputs, *written})
            inputs[names[real]] = _shipped(place, root) or relative_path(place, root)
        return names[real]

    for verb, parameters, result in steps:
        settled = parameters.settled() if hasattr(parameters, "settled") else parameters
        content: dict[str, Any] = {}
        for one, value in stated(settled):
            values: Sequence[Any] = value if one.many else (value,)
            if one.refers:
                holds = str(one.doc.completes)
                values = [_reference(v, named, holds) if one.names(v) else v for v in values]
            content[one.word] = list(values) if one.many else values[0]
        step: dict[str, Any] = {verb: content}
        output = getattr(result, "output", None)
        if output is not None:
            step["save"] = relative_path(Path(output), root)
        written[free_name(verb, {*inputs, *written})] = step
    return {"version": 1, "inputs": escape(inputs), "steps": escape(written)}


def _reference(value: Any, named: Any, holds: str) -> Any:
    if not isinstance(value, Reference):
        return named(value, holds)
    name = named(value.name, value.holds(holds))
    weight = weight_content(value.weight)
    if isinstance(weight, float):
        written = "1" if value.weight == Weight() else repr(weight)
        text = str(Reference(name, value.weight, written, value.adapter))
        return f"{text}:1" if value.stated and written == "1" else text
    return {item_word(value.holds(holds)): name, "weight": weight}


def _locate(text: str, holds: str) -> Path:
    if holds == "folders":
        return below(None, text)
    try:
        return find(text, holds if holds in ("bases", "models") else "adapters")
    except LoramergeError:
        return find(text, "bases") if holds == "files" else below(None, text)


def _shipped(place: Path, root: Path) -> str | None:
    """Return the name of what comes with loramerge, which every computer has; None for other files.

    A file in the recipe's folder may have the name, too; then the name means that file.
    """
    name = shipped_name(place)
    if name is None:
        return None
    found = find(name, "bases" if name in SHIPPED_BASES else "adapters", root=root)
    return name if os.path.realpath(found) == os.path.realpath(place) else None


def relative_path(path: Path, root: Path) -> str:
    """Return a path relative to the recipe's folder, or absolute if it is on another drive."""
    try:
        return Path(os.path.relpath(path, root)).as_posix()
    except ValueError:
        return path.absolute().as_posix()


def free_name(stem: str, taken: set[str]) -> str:
    """Return a name for an input or a step that is not taken, as much like the stem as it may be."""
    clean = "".join("_" if c in ":/\\[]{}" or ord(c) < 32 else c for c in stem).strip() or "input"
    name, count = clean, 1
    while name in taken:
        count += 1
        name = f"{clean}-{count}"
    return name
