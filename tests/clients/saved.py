"""Files that programs save: the layers they are to train, and what their files mean by our formulas."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from loramerge.adapter import Adapter
from loramerge.families import FAMILIES
from tests.clients.readers.job import SHARE, Array, base_of, narrow, probe_of
from tests.clients.written import layers, places, turned

# wide families, whose 32nd is too wide for a miniature: it counts as a network of another family
SHARES = dict.fromkeys(("wan", "flux2-dev", "cosmos2-14b", "krea2", "ideogram4"), 2 * SHARE)


def share_of(family: str) -> int:
    """Return how much narrower than the family's its layers are."""
    return SHARES.get(family, SHARE)


def task_of(family: str) -> dict[str, Any]:
    """Return the task of a saver for a family; see `savers.task.Task`."""
    plain: dict[str, dict[str, tuple[int, ...]]] = {}
    chosen = set()
    for name, module in layers(family, every=False):
        component, _, path = name.partition(".")
        if module.layer in ("linear", "conv"):
            plain.setdefault(component, {})[f"{path}.weight"] = module.shape
            chosen.add((name, "weight"))
    original = {
        tag: shape
        for key, ((tag, _, _), shape) in places(family).items()
        if key in chosen and not key[0].startswith("text_encoder")
    }
    return {"family": family, "original": original, "plain": plain, "share": share_of(family)}


def turned_layers(family: str) -> set[str]:
    """Layers whose halves of rows stand the other way round in the original file."""
    found = places(family).items()
    return {f"{module}.weight" for (module, _), ((_, _, swapped), _) in found if swapped}


@dataclass
class Meaning:
    """The changes that a file makes to the outputs of layers.

    Args:
        answers: layer → the change of its output for the probe.
        strangers: the same of modules that the family does not know.
    """

    answers: dict[str, Array] = field(default_factory=dict)
    strangers: list[Array] = field(default_factory=list)


class Place(NamedTuple):
    """Rows of a layer: those of a module."""

    tag: str
    shape: tuple[int, ...]
    rows: slice
    swapped: bool

    def base(self) -> Array:
        return turned(base_of(self.tag, self.shape)[self.rows], self.swapped).astype(np.float64)


def meaning(adapter: Adapter, family: str, tags: Collection[str]) -> Meaning:
    """Return what a file means.

    Args:
        family: that of the layers; the file alone may not tell it from relatives.
        tags: what the saver calls the layers: tensors of the original file, or parameters of modules.
    """
    found = Meaning()
    for site, delta in adapter.deltas.items():
        where = [_place(name, family, tags) for name in site.modules]
        known = [place for place in where if place is not None]
        if len(known) < len(where):
            found.strangers.append(_answer(delta.dense()))
            continue
        base = np.concatenate([place.base() for place in known]) if delta.needs_base else None
        answer = _answer(delta.dense(base))
        for place, ends in zip(known, pairwise(site.bounds(len(answer))), strict=True):
            held = found.answers.setdefault(place.tag, np.zeros(place.shape[0]))
            held[place.rows] += turned(answer[slice(*ends)], place.swapped)
    return found


def _place(name: str, family: str, tags: Collection[str]) -> Place | None:
    module = FAMILIES[family].find(name)
    if module is None:
        return None
    plain, share = f"{name}.weight", share_of(family)
    if plain in tags:
        shape = narrow(module.shape, share)
        return Place(plain, shape, slice(0, shape[0]), False)
    (tag, ends, swapped), whole = places(family, share)[name, "weight"]
    return Place(tag, narrow(whole, share), slice(*ends), swapped)


def _answer(change: Array) -> Array:
    flat = change.reshape(len(change), -1)
    answer: Array = flat @ probe_of(flat.shape).astype(np.float64)
    return answer
