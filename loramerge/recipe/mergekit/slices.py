"""Layers of models that mergekit puts together, as steps here.

A slice that is a merge becomes three things: the layers of each model as a model of its own, the merge
of those, and its place in the stack of all slices. What is only put together is one stack.

Source: mergekit 0.1.5, `plan.plan_module` and `plan_slice`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from loramerge.recipe.mergekit.gradients import Layers, Unreadable, constant, rules_of
from loramerge.recipe.mergekit.reading import Description, MergedSlice, ModelLayers

__all__ = ["Parts", "merged_slices", "passthrough"]

_FOLDER = "merged-parts"  # of what steps before the last one write


@dataclass
class Parts:
    """The steps of a recipe as they grow.

    Args:
        names: path of a model → its name under `inputs`.
        layers: of the models.
    """

    names: Mapping[str, str]
    layers: Layers
    steps: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, step: Mapping[str, Any]) -> str:
        """Add a merge before the last one, unless it is there; return its name."""
        taken = {*self.names.values(), *self.steps}
        wanted, count = name, 1
        while name in taken:
            if self.steps.get(name, {}).get("merge") == step:
                return name
            count += 1
            name = f"{wanted}-{count}"
        self.steps[name] = {"merge": dict(step), "save": f"{_FOLDER}/{name}"}
        return name

    def name_of(self, source: ModelLayers) -> str:
        """Return the name of a source's layers: its model's, or that of the step that takes them."""
        name = self.names[source.model]
        if source.range is None or source.range == (0, self.layers.count):
            return name
        first, last = source.range[0], source.range[1] - 1
        step = {"models": [name], "layers": [f"{name}={first}-{last}"]}
        return self.add(f"{name}-{first}-{last}", step)

    def layers_of(self, one: MergedSlice) -> Layers:
        """Return the layers of a slice, as its filters and gradients count them."""
        whole = {source.range for source in one.sources} <= {None, (0, self.layers.count)}
        count = self.layers.count if one.count is None else one.count
        return Layers(count, self.layers.word, numbered=whole)

    def used(self) -> set[str]:
        """Return the names that the steps use."""
        found: set[str] = set()
        for step in self.steps.values():
            merge = step["merge"]
            found |= {one if isinstance(one, str) else one["model"] for one in merge["models"]}
            found |= {merge[word] for word in ("base", "layout") if word in merge}
        return found


def passthrough(found: Description, parts: Parts) -> dict[str, Any]:
    """Return the `merge` that stacks layers as they are; notes what mergekit would change in them."""
    layers = []
    for number, one in enumerate(found.slices):
        if len(one.sources) != 1:
            text = f"passthrough: slice {number + 1} has several sources"
            found.problems.append(text if len(found.slices) > 1 else "passthrough: several models")
        for source in one.sources[:1]:
            _require_unscaled(found, one, source)
            layers.append(_as_they_are(found, parts, source))
    order = [found.base] if found.base is not None else []  # whose configuration the result has
    order += [source.model for one in found.slices for source in one.sources]
    models = list(dict.fromkeys(parts.names[model] for model in order))
    return {"models": models, "layers": layers}


def _as_they_are(found: Description, parts: Parts, source: ModelLayers) -> str:
    """Return the layers of a model in the words of `merge`."""
    if source.range is None and found.layers.count is None:
        found.problems.append(
            f"{found.method}: the number of layers is not known, and the model is not a folder here"
        )
    first, stop = source.range or (0, found.layers.count or 1)
    return f"{parts.names[source.model]}={first}-{stop - 1}"


def _require_unscaled(found: Description, one: MergedSlice, source: ModelLayers) -> None:
    """Note parameters of layers that are taken as they are."""
    scopes = [source.parameters, *one.scopes]
    try:
        scale = constant("scale", rules_of("scale", scopes), 1.0)
    except Unreadable:
        scale = 0.0
    if scale != 1.0:
        found.problems.append("scale: passthrough takes layers as they are here")
    for scope in scopes:
        found.problems += [
            text
            for name in scope
            if name not in ("scale", "int8_mask")
            and (text := f"{name}: the method passthrough has no such parameter here")
            not in found.problems
        ]


def merged_slices(
    found: Description, parts: Parts, merge: Callable[[MergedSlice, Parts], dict[str, Any]]
) -> dict[str, Any]:
    """Return the `merge` that puts slices together, each of which is a merge itself.

    Args:
        merge: function of a slice and of the steps, to which it may add, that gives the parameters of
            its merge.
    """
    if len(found.slices) == 1 and len(found.slices[0].sources) > 1:
        return merge(found.slices[0], parts)
    names, layers = [], []
    for number, one in enumerate(found.slices):
        if len(one.sources) == 1:  # mergekit gives it back as it is, at whatever weight
            (source,) = one.sources
            merge(one, Parts(parts.names, parts.layers))  # for what it may refuse
            names.append(parts.names[source.model])
            layers.append(_as_they_are(found, parts, source))
            continue
        step = merge(one, parts)
        step |= {} if found.dtype is None else {"dtype": found.dtype}
        name = parts.add(f"slice-{number + 1}", step)
        names.append(name)
        layers.append(f"{name}=0-{(one.count or 1) - 1}")
    return {"models": list(dict.fromkeys(names)), "layers": layers}
