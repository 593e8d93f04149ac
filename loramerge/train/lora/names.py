"""Names of models and layers: components, canonical names, and the names that adapters use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeAlias

from torch import nn

from loramerge.dialects import DIALECTS, stem_table
from loramerge.dialects.classify import Group
from loramerge.dialects.detect import detect
from loramerge.dialects.detection import Detection
from loramerge.errors import FamilyError, UsageError
from loramerge.families import FAMILIES, Family
from loramerge.train.lora.branch import supported, weight_shape

__all__ = [
    "NAMING",
    "Models",
    "by_component",
    "canonical",
    "component_of",
    "detection_of",
    "homes_of",
]

Models: TypeAlias = nn.Module | Mapping[str, nn.Module]

_NEARLY_ALL = 0.8
NAMING = DIALECTS["diffusers"]  # spells a module as `component.path`, as models do


def component_of(model: nn.Module) -> str:
    """Return the component a model is by its class: `unet`, …; '' for any other class."""
    name = type(model).__name__
    usual = "transformer" if name.endswith(("Transformer2DModel", "Transformer3DModel")) else ""
    return _by_class().get(name, usual)


@cache
def _by_class() -> dict[str, str]:
    """Return class → component, where nearly all families with one component of a class call it so."""
    found: dict[str, Counter[str]] = {}
    for family in FAMILIES.values():
        counts = Counter(family.classes.values())
        for component, name in family.classes.items():
            if counts[name] == 1:
                found.setdefault(name, Counter())[component] += 1
    most = {name: counts.most_common(1)[0] for name, counts in found.items()}
    return {n: one for n, (one, count) in most.items() if count >= _NEARLY_ALL * found[n].total()}


def by_component(models: Models) -> dict[str, nn.Module]:
    """Return component → model.

    Raises:
        UsageError: if one of several has no name.
    """
    if not isinstance(models, Mapping):
        return {component_of(models): models}
    if len(models) > 1 and "" in models:
        raise UsageError("with several models, each needs the name of its component")
    return dict(models)


def _layers(models: Mapping[str, nn.Module]) -> dict[tuple[str, str], Any]:
    """Return (component, path) → layer of every layer that could have a LoRA."""
    return {
        (component, path): layer
        for component, model in models.items()
        for path, layer in model.named_modules()
        if supported(layer)
    }


def _holders(models: Mapping[str, nn.Module]) -> list[tuple[str, str]]:
    """Return (component, path) of every module that has parameters of its own."""
    return [
        (component, path)
        for component, model in models.items()
        for path, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]


def _joined(component: str, path: str) -> str:
    return f"{component}.{path}" if component else path


def detection_of(models: Mapping[str, nn.Module], injected: list[tuple[str, str]]) -> Detection:
    """Find the family by all layers of the models; it must have every one that is injected.

    A small UNet may resemble a family by most of its names and yet be none.
    """
    layers = _layers(models)
    groups = [Group(NAMING.name, _joined(*place), {}) for place in layers]
    shapes = {
        (NAMING.name, _joined(*place)): weight_shape(layer) for place, layer in layers.items()
    }
    found = detect(groups, shapes, {})
    known = {} if found.naming is None else stem_table(NAMING, found.naming)
    if all(_joined(*place) in known for place in injected):
        return found
    return Detection((), "no known family has all modules that are injected")


def canonical(component: str, path: str, naming: Family | None) -> str:
    """Return the canonical name of a model's module."""
    name = _joined(component, path)
    if naming is None:
        return name
    stem = stem_table(NAMING, naming).get(name)
    if stem is None:
        raise FamilyError(
            f"the family {naming.name} has no such module",
            module=name,
            hint="leave it out with exclude=, or give the component: {'text_encoder': model}",
        )
    return stem.module


def homes_of(
    models: Mapping[str, nn.Module], naming: Family | None, *, every: bool = False
) -> dict[str, tuple[str, str]]:
    """Return the names an adapter may have for each layer → (component, path).

    Args:
        every: norms and embeddings too, not only layers that could have a LoRA.

    Adapters of no known family are named as their dialect spells stems.
    """
    homes: dict[str, tuple[str, str]] = {}
    known = {} if naming is None else stem_table(NAMING, naming)
    places = _holders(models) if every else list(_layers(models))
    for place in places:
        name = _joined(*place)
        stem = known.get(name)
        spelled = [stem.module] if stem else [name, _flat(*place), *_in_folder(*place)]
        for one in spelled:
            homes.setdefault(one, place)
    return homes


def _flat(component: str, path: str) -> str:
    """Return kohya's spelling of a module, as it is called where the family is unknown."""
    return _joined(component, path.replace(".", "_"))


def _in_folder(component: str, path: str) -> list[str]:
    """Return the name of a module in PEFT's folders, where the family is unknown."""
    return [f"{path}", f"base_model.model.{path}", f"{component}.base_model.model.{path}"]
