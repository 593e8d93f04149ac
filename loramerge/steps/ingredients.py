"""The ingredients of a mix: the adapters that its recipe names, found by name and digest.

A mix made in memory knows its inputs; one that was read has a recipe in its header, and one that was
resized or converted since has the recipe of the mix inside its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loramerge.adapter import Adapter
from loramerge.adapter.metadata import RECIPE_KEY
from loramerge.algebra.weights import Weight, weight_of
from loramerge.errors import AdapterError, Message, NotFound, Setting, listed
from loramerge.library.known import KnownFiles
from loramerge.steps.provenance import FileInput, Made, input_of, recipe_in
from loramerge.steps.references import Reference, parse_reference

__all__ = ["ingredients_of"]

_THROUGH = ("resize", "convert")  # verbs whose result has the ingredients of their input
_GIVE: Message = ("name the adapters that it was mixed from: ", Setting("ingredient", "NAME:0.7"))


def ingredients_of(adapter: Adapter) -> list[Reference]:
    """Return the adapters that an adapter was mixed from, with their weights; names are paths.

    Raises:
        AdapterError: if no mix made it, as far as is known.
        NotFound: naming the ingredients that are neither beside it, nor in the library.
    """
    node = input_of(adapter)
    found = list(_of_step(node, adapter) if isinstance(node, Made) else _of_file(node, adapter))
    if not found:
        raise _unknown(adapter, "its recipe is not that of a mix")
    return found


def _unknown(adapter: Adapter, why: str) -> AdapterError:
    return AdapterError(
        "it is not known what this was mixed from, and a fair result needs to know",
        file=adapter.label,
        found=why,
        hint=_GIVE,
    )


def _weighed(path: Path, weight: Weight) -> Reference:
    return Reference(str(path), weight, "1" if weight == Weight() else weight.text())


def _of_step(node: Made, adapter: Adapter) -> Iterator[Reference]:
    """Yield the ingredients of a mix that was made in memory."""
    while node.verb in _THROUGH:
        inner = node.content["adapter"]["adapter"]
        if isinstance(inner, FileInput):
            yield from _of_file(inner, adapter)
            return
        node = inner
    if node.verb != "mix":
        return
    for one in node.content["adapters"]:
        if not isinstance(one["adapter"], FileInput):
            raise _unknown(adapter, f"an adapter that {one['adapter'].verb} made in memory")
        yield _weighed(one["adapter"].path, weight_of(one.get("weight", 1.0), "weight"))


def _of_file(node: FileInput | None, adapter: Adapter) -> Iterator[Reference]:
    """Yield the ingredients of a mix that was read, from the recipe in its header."""
    text = None if node is None else node.recipe
    recipe = None if text is None else recipe_in({RECIPE_KEY: text})
    if node is None or recipe is None:
        raise _unknown(adapter, "no recipe in its header")
    step = _mix_in(recipe)
    if step is None:
        return
    inputs, content = step
    folders = [node.path.absolute().parent, Path.cwd()]
    known, missing, found = KnownFiles(), [], []
    for name, weight in _adapters_in(content):
        entry = inputs.get(name)
        if not isinstance(entry, Mapping):
            raise _unknown(adapter, f"{name}, which was made in memory")
        wanted = Path(str(entry.get("path", name))).name
        path = known.search(wanted, entry.get("sha256"), folders)
        missing += [wanted] if path is None else []
        found += [] if path is None else [_weighed(path, weight)]
    if missing:
        raise NotFound(
            "an ingredient of the mix was not found"
            if len(missing) == 1
            else f"{len(missing)} ingredients of the mix were not found",
            file=adapter.label,
            module=listed(missing, 6),
            hint=("add their folder to the library, or ", *_GIVE),
        )
    yield from found


def _mix_in(recipe: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """Return the inputs of the recipe of a mix, and the content of the mix; None if there is none."""
    name = next(reversed(recipe["steps"]), None)
    while name is not None:
        step = recipe["steps"].get(name)
        if isinstance(step, Mapping) and isinstance(step.get("mix"), Mapping):
            return recipe["inputs"], step["mix"]
        inner = next((step[verb] for verb in _THROUGH if verb in step), None) if step else None
        if not isinstance(inner, Mapping):
            return None
        name = next((one for one, _ in _adapters_in({"adapters": [inner.get("adapter")]})), None)
        entry = recipe["inputs"].get(name)
        if isinstance(entry, Mapping):
            own = entry.get("recipe")
            if not isinstance(own, Mapping) or not _is_whole(own):
                return None
            recipe, name = own, next(reversed(own["steps"]), None)
    return None


def _is_whole(recipe: Mapping[str, Any]) -> bool:
    return all(isinstance(recipe.get(word), Mapping) for word in ("inputs", "steps"))


def _adapters_in(content: Mapping[str, Any]) -> Iterator[tuple[str, Weight]]:
    """Yield the names of the adapters of a step, with their weights."""
    stated: Sequence[Any] = content.get("adapters") or ()
    for one in stated if isinstance(stated, list) else ():
        if isinstance(one, str):
            reference = parse_reference(one)
            yield reference.name, reference.weight
        elif isinstance(one, Mapping) and isinstance(one.get("adapter"), str):
            yield one["adapter"], weight_of(one.get("weight", 1.0), "weight")
