"""A recipe, read and checked as a whole: everything is checked before anything is done, and all
mistakes are reported together.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loramerge.errors import UsageError, suggestion
from loramerge.recipe.expand import expand
from loramerge.recipe.inputs import Input, read_inputs
from loramerge.recipe.mistakes import Mistakes
from loramerge.recipe.series import with_series
from loramerge.recipe.step import read_steps
from loramerge.recipe.task import Task
from loramerge.recipe.text import parse_text, read_text
from loramerge.recipe.variables import cases_of, variables_of

__all__ = ["Recipe", "Source", "load_recipe", "open_recipe", "recipe_of"]

Source = str | os.PathLike[str] | Mapping[str, Any]  # a YAML file, or the content of one

_WORDS = ("version", "vars", "inputs", "sweep", "steps")


@dataclass
class Recipe:
    """A checked recipe.

    Args:
        path: of its file, None for one that is in no file.
        root: folder that relative paths start from.
        name: for messages.
        cases: of the sweep; one empty case where there is none.
        tasks: by name, each after those it needs.
    """

    path: Path | None
    root: Path
    name: str
    inputs: dict[str, Input]
    cases: list[dict[str, Any]]
    tasks: dict[str, Task] = field(default_factory=dict)

    @property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """Task → tasks that it needs."""
        return {name: task.needs for name, task in self.tasks.items()}


def open_recipe(
    source: Source,
    *,
    set: Mapping[str, Any] | None = None,  # the word of the command line
    inputs: Mapping[str, str] | None = None,
) -> Recipe:
    """Check a recipe given as a file or as its content; see `recipe_of`.

    Relative paths start from the file's folder, or from the current one.
    """
    if isinstance(source, Mapping):
        return recipe_of(source, Path(), set=set, inputs=inputs)
    return load_recipe(source, set=set, inputs=inputs)


def load_recipe(
    path: str | os.PathLike[str],
    *,
    set: Mapping[str, Any] | None = None,
    inputs: Mapping[str, str] | None = None,
) -> Recipe:
    """Check a recipe in a YAML file; see `recipe_of`."""
    place = Path(path)
    content, mistakes = parse_text(read_text(place), str(path))
    return recipe_of(content, place.parent, mistakes, set=set, inputs=inputs, path=place)


def recipe_of(
    content: Any,
    root: Path,
    mistakes: Mistakes | None = None,
    *,
    set: Mapping[str, Any] | None = None,
    inputs: Mapping[str, str] | None = None,
    path: Path | None = None,
) -> Recipe:
    """Check the content of a recipe.

    Args:
        root: folder that relative paths start from.
        mistakes: those found when it was read.
        set: variable → value, instead of the recipe's.
        inputs: input → path, instead of the recipe's; relative paths start from the current folder.

    Raises:
        RecipeError: with all mistakes.
        UsageError: if `set` or `inputs` name nothing in the recipe.
    """
    mistakes = mistakes or Mistakes("recipe", {})
    values, paths = set or {}, inputs or {}
    if not isinstance(content, Mapping):
        mistakes.add((), "a recipe must be a mapping with version and steps")
        mistakes.refuse()
    _check_words(content, mistakes)
    _check_given(values, _variable_names(content), "variable")
    variables = variables_of(content.get("vars") or {}, ("vars",), values, mistakes)
    cases: list[dict[str, Any]] = [{}]
    if content.get("sweep") is not None:
        cases = cases_of(content["sweep"], ("sweep",), values, root, mistakes)
    for name in {n for case in cases for n in case} & variables.keys():
        mistakes.add(("sweep",), f"the variable {name!r} is also in vars")
    stated = content.get("inputs") or {}
    _check_given(paths, stated if isinstance(stated, Mapping) else (), "input")
    files = read_inputs(stated, root, variables, paths, mistakes)
    steps = read_steps(content.get("steps"), files, mistakes)
    steps, cases = with_series(steps, cases, variables, mistakes)
    tasks = expand(steps, cases, variables, files, root, mistakes) if steps else {}
    mistakes.refuse()
    return Recipe(path, root, mistakes.name, files, cases, tasks)


def _check_words(content: Mapping[str, Any], mistakes: Mistakes) -> None:
    """Note words that recipes do not have, and another version than 1."""
    for word in content:
        if word not in _WORDS:
            mistakes.add((word,), f"recipes have no {word!r}", suggestion(word, _WORDS))
    if "version" not in content:
        mistakes.add((), "the recipe has no version", "add version: 1")
    elif content["version"] != 1 or isinstance(content["version"], bool):
        problem = f"version {content['version']!r} is not known"
        mistakes.add(("version", "="), problem, "version: 1")


def _check_given(given: Mapping[str, Any], names: Collection[str], sort: str) -> None:
    """Refuse given values for variables and inputs that the recipe does not have.

    Raises:
        UsageError: naming the nearest that it has.
    """
    for name in given:
        if name not in names:
            hint = suggestion(name, names) or f"it has {', '.join(names) or 'none'}"
            raise UsageError(f"the recipe has no {sort} {name!r}", hint=hint)


def _variable_names(content: Mapping[str, Any]) -> list[str]:
    """Return the names in `vars` and `sweep`, as far as they are mappings."""
    sweep = content.get("sweep")
    parts = [content.get("vars"), *(sweep if isinstance(sweep, list) else [sweep])]
    return list(dict.fromkeys(n for part in parts if isinstance(part, Mapping) for n in part))
