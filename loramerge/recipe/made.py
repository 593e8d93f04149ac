"""The recipe of a result in memory, as YAML: its steps down to the files, by their paths.

The header of a file holds the same steps, with names and digests instead of paths. So the recipe
written here makes a file with the same header, and with the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loramerge.library.paths import bare
from loramerge.recipe.variables import escape
from loramerge.recipe.writing import free_name, relative_path, yaml_text
from loramerge.steps.parameters import stated
from loramerge.steps.provenance import FileInput, Given, Made, nodes_of, step_of

__all__ = ["recipe_of_made", "recipe_step"]


def recipe_step(verb: str, parameters: Any, given: Given) -> Made | None:
    """Return the step that repeats a verb, None if the origin of an input is not known.

    Unlike the step in a header, it also has the parameters that only decide whether a result is
    written, such as `allow_loss`.

    Args:
        given: see `provenance.step_of`.
    """
    made = step_of(verb, parameters, given)
    if made is None:
        return None
    silent = {
        one.word: list(value) if one.many else value
        for one, value in stated(parameters)
        if not one.doc.result and not one.refers
    }
    return Made(verb, {**made.content, **silent})


def recipe_of_made(made: Made, save: Path, root: Path) -> str:
    """Return the recipe that makes something again and saves it, with paths relative to a folder.

    Args:
        made: the last step; its inputs lead to the others.
        save: where the recipe writes its result.
        root: the folder that the recipe will be in.
    """
    inputs: dict[str, str] = {}
    steps: dict[str, Any] = {}
    names: dict[int, str] = {}
    files: dict[str, str] = {}  # real path → name

    def spelled(value: Any) -> Any:
        if isinstance(value, (FileInput, Made)):
            return names[id(value)]
        if isinstance(value, Mapping):
            if len(value) == 1 and isinstance(
                only := next(iter(value.values())), (FileInput, Made)
            ):
                return names[id(only)]  # without a weight
            return {key: spelled(part) for key, part in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [spelled(part) for part in value]
        return value

    for node in nodes_of(made):
        if isinstance(node, Made):
            name = free_name(node.verb, {*inputs, *steps})
            names[id(node)] = name
            content = {key: spelled(part) for key, part in node.content.items()}
            steps[name] = {node.verb: content}
            continue
        real = os.path.realpath(node.path)
        if real not in files:
            files[real] = free_name(bare(node.path.name) or "input", {*inputs, *steps})
            inputs[files[real]] = relative_path(node.path, root)
        names[id(node)] = files[real]
    steps[names[id(made)]]["save"] = relative_path(save, root)
    return yaml_text({"version": 1, "inputs": escape(inputs), "steps": escape(steps)})
