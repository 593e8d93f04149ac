"""The recipe that does what mergekit's file describes, or everything in it that has no counterpart."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from loramerge.errors import CorruptFile, FormatError, listed
from loramerge.recipe.mergekit import arithmetic, methods
from loramerge.recipe.mergekit.gradients import Rules
from loramerge.recipe.mergekit.methods import Counterpart, TheirMerge
from loramerge.recipe.mergekit.reading import Description, MergedSlice, misshapen, read
from loramerge.recipe.mergekit.slices import Parts, merged_slices, passthrough

__all__ = ["recipe_of_mergekit"]

_STEP = "merged"
_METHODS = {**methods.METHODS, **arithmetic.METHODS}
_PASSTHROUGH = "passthrough"
_PARAMETERS = {
    "weight", "density", "gamma", "epsilon", "lambda", "normalize", "rescale", "t", "select_topk",
    "filter_wise", "nuslerp_flatten", "nuslerp_row_wise",
}  # fmt: skip


def recipe_of_mergekit(content: Any, file: Path, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the recipe of mergekit's file, and notes on what differs.

    Args:
        content: the file, read.
        file: for errors.
        folder: of the recipe, that paths are written relative to.

    Raises:
        CorruptFile: if it is not a file of mergekit.
        FormatError: naming everything that has no counterpart.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("merge_method"), str):
        raise CorruptFile(
            "this is not a recipe of mergekit",
            file=file,
            expected="merge_method, and models or slices",
        )
    if wrong := misshapen(content):
        raise CorruptFile("this is not a recipe of mergekit", file=file, found=listed(wrong))
    found = read(content)
    known = [*_METHODS, _PASSTHROUGH]
    parts = Parts(_names(found.models), found.layers)
    last: dict[str, Any] = {}
    if found.method not in known:
        found.problems.append(f"merge_method: {found.method} (there are {listed(known, 20)})")
    elif found.method == _PASSTHROUGH:
        last = passthrough(found, parts)
    elif found.is_whole and len(found.slices[0].sources) > 1:
        last = _merge(found, found.slices[0], parts)
    else:
        last = merged_slices(found, parts, partial(_merge, found))
    if not last.get("models") and not found.problems:
        found.problems.append("models: there is nothing to merge")
    if found.problems:
        raise FormatError(
            "mergekit's recipe cannot be expressed here",
            file=file,
            found="; ".join(found.problems),
            hint="change these in it, or write the steps of a recipe yourself",
        )
    if found.dtype is not None:
        last["dtype"] = found.dtype
    parts.steps[_STEP] = {"merge": last, "save": _STEP}
    used = parts.used()
    inputs = {name: _path(model, folder) for model, name in parts.names.items() if name in used}
    recipe = {"version": 1, "inputs": inputs, "steps": parts.steps}
    return recipe, found.notes + _on_places(found.models)


def _merge(found: Description, one: MergedSlice, parts: Parts) -> dict[str, Any]:
    """Return the parameters of the `merge` step of a slice.

    Work that has to come before becomes steps of its own. Parameters without a counterpart are added to
    the problems.
    """
    merge = TheirMerge(
        found.method,
        one.base,
        [source.model for source in one.sources],
        [source.parameters for source in one.sources],
        one.scopes,
        parts.layers_of(one),
        found.problems,
        found.notes,
    )
    counterpart = None
    with merge.trying():
        counterpart = _METHODS[found.method](merge)
    _require_known(merge, of_any=counterpart is None)
    counterpart = counterpart or Counterpart({}, [])
    step = dict(counterpart.step)
    names = {source.model: parts.name_of(source) for source in one.sources}
    models = []
    for number, (model, rules) in enumerate(zip(merge.models, counterpart.weights, strict=False)):
        name = names[model]
        if number in counterpart.pruned:
            name = _pruned(merge, names, name, counterpart.pruned[number], parts)
        models.append(_weighted(merge, name, rules))
    if counterpart.pruned and found.dtype is None and merge.models:
        step["layout"] = names[merge.models[0]]
    if "base" in step:
        step["base"] = names.get(step["base"], parts.names[step["base"]])
        if counterpart.beside_base:
            models.append(step["base"])
        elif len(models) == 1:  # a merge has two inputs
            models.append({"model": step["base"], "weight": 0.0})
    return {"models": models, **step}


def _pruned(
    merge: TheirMerge,
    names: Mapping[str, str],
    name: str,
    pruning: tuple[dict[str, Any], Rules],
    parts: Parts,
) -> str:
    """Return the name of a step that prunes what a model changes, and leaves the sum in float32.

    The base stands beside it, as in `Counterpart.beside_base`.
    """
    settings, weight = pruning
    base = names[settings["base"]]
    models = [_weighted(merge, name, weight), base]
    step = {"models": models, **settings, "base": base, "dtype": "float32"}
    return parts.add(f"{name}-pruned", step)


def _weighted(merge: TheirMerge, name: str, rules: Rules) -> Any:
    weight: Any = 1.0
    with merge.trying():
        weight = merge.values("weight", rules)
    return name if weight == 1.0 else {"model": name, "weight": weight}


def _require_known(merge: TheirMerge, *, of_any: bool) -> None:
    """Note parameters that the method does not have here.

    Args:
        of_any: pass over those of other methods, because not all of this one are known.
    """
    known = merge.used | {"int8_mask"} | (_PARAMETERS if of_any else set())
    for scope in (*merge.own, *merge.scopes):
        for name in scope:
            if name not in known:
                text = f"{name}: the method {merge.method} has no such parameter here"
                if text not in merge.problems:
                    merge.problems.append(text)


def _names(models: Sequence[str]) -> dict[str, str]:
    """Return short names of models, each another."""
    found: dict[str, str] = {}
    for model in models:
        stem = model.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or "model"
        name, count = stem.replace(":", "_"), 1
        while name in found.values() or name == _STEP:
            count += 1
            name = f"{stem}-{count}"
        found[model] = name
    return found


def _path(model: str, folder: Path) -> dict[str, str]:
    """Return the input of a model: where it is, or what the file calls it."""
    here = Path(model)
    if here.exists() and not here.is_absolute():
        with suppress(ValueError):
            return {"path": Path(os.path.relpath(here, folder)).as_posix()}
    return {"path": model}


def _on_places(models: Sequence[str]) -> list[str]:
    away = sorted({model for model in models if not Path(model).exists()})
    if not away:
        return []
    return [
        f"not found here: {listed(away, 4)}; download them, and write their folders under inputs"
    ]
