"""The adapters that a checkpoint holds according to the recipe in its header."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loramerge.algebra.weights import Weight, weight_of
from loramerge.errors import LoramergeError

__all__ = ["Inside", "inputs_in", "inside", "last_step", "parts_in", "total_of", "weights_of"]

Recipe = Mapping[str, Any]


@dataclass(frozen=True)
class Inside:
    """One bake of an adapter, or its removal.

    Args:
        sha256: digest of the adapter, `''` where it was computed and not read.
        weight: negative where it was taken out.
    """

    name: str
    sha256: str
    weight: Weight


def last_step(recipe: Recipe) -> tuple[str, Mapping[str, Any]]:
    """Return the verb and the parameters of the step that made a file; `''` if there is none."""
    for step in reversed(list(recipe["steps"].values())):
        words = [word for word in step if word != "save"] if isinstance(step, Mapping) else []
        if len(words) == 1 and isinstance(step[words[0]], Mapping):
            return words[0], step[words[0]]
        break
    return "", {}


def parts_in(content: Mapping[str, Any]) -> Iterator[tuple[str, Weight]]:
    """Yield (name, weight) of the adapters in a step of a recipe."""
    given = content.get("adapters", content.get("lora", ()))
    for part in given if isinstance(given, Sequence) and not isinstance(given, str) else (given,):
        if isinstance(part, Mapping) and isinstance(part.get("adapter"), str):
            yield part["adapter"], weight_of(part.get("weight", 1.0), "a recipe in a header")


def inside(recipe: Recipe | None) -> list[Inside]:
    """Return what was baked into a checkpoint and taken out of it, those of its own base first."""
    if recipe is None:
        return []
    verb, content = last_step(recipe)
    if verb not in ("bake", "unbake"):
        return []
    word, sign = ("base", 1.0) if verb == "bake" else ("checkpoint", -1.0)
    entry = recipe["inputs"].get(content.get(word))
    below = entry.get("recipe") if isinstance(entry, Mapping) else None
    found = inside(below) if _is_recipe(below) else []
    try:
        parts = list(parts_in(content))
    except LoramergeError:
        return found  # a header may hold anything
    for name, weight in parts:
        own = recipe["inputs"].get(name)
        own = own if isinstance(own, Mapping) else {}
        label, digest = str(own.get("path", name)), str(own.get("sha256", ""))
        found.append(Inside(label, digest, weight.times(sign)))
    return found


def _is_recipe(content: Any) -> bool:
    return isinstance(content, Mapping) and all(
        isinstance(content.get(word), Mapping) for word in ("inputs", "steps")
    )


def total_of(those: Sequence[Inside], sha256: str) -> float | None:
    """Return the weight of an adapter after all bakes and removals; None where it differs by module.

    What was taken out with the weights by which it was baked sums to 0.
    """
    left = weights_of(those, sha256)
    if not all(one.plain for one in left):
        return None
    return left[0].default if left else 0.0


def weights_of(those: Sequence[Inside], sha256: str) -> list[Weight]:
    """Return the weights of an adapter after all bakes and removals, which add up.

    The first is the sum of all that are one number, if it is not 0.
    """
    total, others = 0.0, list[Weight]()
    for one in those:
        if one.sha256 != sha256:
            continue
        opposite = one.weight.times(-1.0)
        if one.weight.plain:
            total += one.weight.default
        elif opposite in others:
            others.remove(opposite)
        else:
            others.append(one.weight)
    return others if abs(total) < 1e-9 else [Weight(total), *others]


def inputs_in(recipe: Recipe) -> Iterator[Mapping[str, Any]]:
    """Yield every input of a recipe that has a digest, those of its inputs' own recipes too."""
    for entry in recipe["inputs"].values():
        if isinstance(entry, Mapping):
            if "sha256" in entry:
                yield entry
            if _is_recipe(entry.get("recipe")):
                yield from inputs_in(entry["recipe"])
