"""Recipes of merges of other programs: from mergekit's files, and from metadata of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loramerge.checkpoint.files import find_files
from loramerge.errors import FormatError, listed
from loramerge.recipe.mergekit import recipe_of_mergekit
from loramerge.recipe.text import parse_text, read_text
from loramerge.recipe.writing import yaml_text
from loramerge.steps.lineage import Lineage, Weight, lineage_of

__all__ = ["from_merge", "from_mergekit"]

_STEP = "merged"


def from_mergekit(path: Path, folder: Path) -> tuple[str, list[str]]:
    """Return the recipe of a file of mergekit as YAML, and notes on what differs.

    Args:
        folder: of the recipe, that paths are written relative to.

    Raises:
        MissingFile, FileError, RecipeError: if it cannot be read.
        FormatError: naming everything that has no counterpart.
    """
    content, mistakes = parse_text(read_text(path), path.name)
    mistakes.refuse()
    recipe, notes = recipe_of_mergekit(content, path, folder)
    return _text(recipe, notes, f"From {path.name} of mergekit."), notes


def from_merge(path: Path) -> tuple[str, list[str]]:
    """Return the recipe of the merge in a checkpoint's metadata as YAML, and notes on what differs.

    Raises:
        LoramergeError: if the file cannot be read.
        FormatError: if it names no merge, or one that has no counterpart, naming what.
    """
    for file in find_files(path).weights:
        merge = lineage_of(file.open()[1])
        if merge is not None:
            recipe = _recipe(merge, path)
            notes = [
                *merge.notes,
                "the inputs are named as in the file: write their paths under inputs",
            ]
            return _text(recipe, notes, f"The merge that made {path.name}: {merge.words}."), notes
    raise FormatError(
        "the header does not say what this file was merged from",
        file=path,
        expected="sd_merge_recipe or mecha_recipe",
        hint="a file that loramerge wrote repeats with `loramerge run`, and a LoRA of supermerger too",
    )


def _recipe(merge: Lineage, path: Path) -> dict[str, Any]:
    """Return the recipe of a recorded merge.

    Raises:
        FormatError: naming what has no counterpart.
    """
    if merge.problems:
        raise FormatError(
            f"the merge of {merge.program} cannot be expressed here",
            file=path,
            module=listed(merge.models, 4),
            found="; ".join(merge.problems),
        )
    names = {
        model: _name(model) for model in (*merge.models, *([merge.base] if merge.base else []))
    }
    step: dict[str, Any] = {
        "models": [
            names[model] if weight is None else {"model": names[model], "weight": _weight(weight)}
            for model, weight in zip(merge.models, merge.weights, strict=True)
        ]
    }
    if merge.base:
        step["base"] = names[merge.base]
    if merge.half:
        step["dtype"] = "float16"
    return {
        "version": 1,
        "inputs": {name: {"path": model} for model, name in names.items()},
        "steps": {_STEP: {"merge": step, "save": f"{_STEP}.safetensors"}},
    }


def _weight(weight: Weight) -> float | dict[str, Any]:
    return weight if isinstance(weight, float) else {"blocks": list(weight)}


def _name(model: str) -> str:
    last = model.replace("\\", "/").rpartition("/")[2].partition(" [")[0]
    return last.removesuffix(".safetensors").removesuffix(".ckpt").replace(":", "_") or "model"


def _text(recipe: dict[str, Any], notes: list[str], title: str) -> str:
    return "".join(f"# {line}\n" for line in (title, *notes)) + yaml_text(recipe)
