"""Modules beside their neighbours: the same layer in other blocks, other layers of the same block.

The logarithm of a module's norm less the median of its layer, less the median of its block, each without
the module itself (median polish, one round), is how far it stands out.

Source: Tukey, "Exploratory Data Analysis" (1977), chapter 11.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import NamedTuple, TypeVar

from loramerge.adapter import Site
from loramerge.algebra.health.measure import ModuleFigures

__all__ = [
    "LayerPlace",
    "attention_of",
    "beside_neighbours",
    "place_of",
    "spike_caps",
    "typical_largest",
]

_FEWEST = 4  # modules of a layer, below which those of the whole component are its neighbours
_FEWEST_OF_A_BLOCK = 3
_QUERIES = (
    ("to_q", "to_k", "to_v"),
    ("q_proj", "k_proj", "v_proj"),
    ("add_q_proj", "add_k_proj", "add_v_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
)

K = TypeVar("K")


class LayerPlace(NamedTuple):
    """The place of a module in the network.

    Args:
        block: what stands before the layer, `unet.up_blocks.1.attentions.0.transformer_blocks.0`.
        stack: the block without numbers.
        layer: `attn1.to_q`.
    """

    component: str
    block: str
    stack: str
    layer: str


def place_of(name: str) -> LayerPlace:
    """Return the place of a module, by the numbers in its name that count blocks.

    A number counts blocks where the word before it is a plural (`blocks`, `attentions`, `layers`,
    `resnets`) or `h`; `to_out.0` and `net.2` are layers.
    """
    parts = name.split(".")
    last = 0
    for index, part in enumerate(parts[:-1]):
        before = parts[index - 1] if index else ""
        if part.isdigit() and (before.endswith("s") or before == "h"):
            last = index
    block, layer = parts[: last + 1], parts[last + 1 :]
    if last == 0:
        block, layer = parts[:1], parts[1:]
    stack = ".".join(part for part in block if not part.isdigit())
    return LayerPlace(parts[0], ".".join(block), stack, ".".join(layer) or name)


def _medians(values: Iterable[tuple[K, float]], least: int) -> dict[K, float]:
    groups: dict[K, list[float]] = defaultdict(list)
    for key, value in values:
        groups[key].append(value)
    return {key: median(found) for key, found in groups.items() if len(found) >= least}


def beside_neighbours(measures: Sequence[ModuleFigures]) -> dict[Site, float]:
    """Return site → how many times as large its norm is as that of its neighbours.

    Modules without a norm, or whose norm is 0, are left out, and so are components of few modules.
    """
    known = [(m, place_of(m.site.name)) for m in measures if m.norm and len(m.delta.shape) > 1]
    logs = [math.log(m.norm or 1.0) for m, _ in known]
    left = _without_medians(known, logs, lambda p: (p.component, p.layer), _FEWEST)
    left = _without_medians(known, left, lambda p: p.block, _FEWEST_OF_A_BLOCK, alone=0.0)
    sizes: dict[str, int] = defaultdict(int)
    for _, place in known:
        sizes[place.component] += 1
    return {
        m.site: math.exp(rest)
        for (m, place), rest in zip(known, left, strict=True)
        if sizes[place.component] >= _FEWEST
    }


def _without_medians(
    known: Sequence[tuple[ModuleFigures, LayerPlace]],
    values: Sequence[float],
    group: Callable[[LayerPlace], K],
    least: int,
    alone: float | None = None,
) -> list[float]:
    """Return values less the median of the others of their group; of a small one, of the component.

    A module does not count among its own neighbours, so that it does not hide itself in small groups.

    Args:
        alone: what is taken off in small groups instead of the component's median.
    """
    groups, wholes = defaultdict[K, list[float]](list), defaultdict[str, list[float]](list)
    for (_, place), value in zip(known, values, strict=True):
        groups[group(place)].append(value)
        wholes[place.component].append(value)
    for members in (*groups.values(), *wholes.values()):
        members.sort()
    found = []
    for (_, place), value in zip(known, values, strict=True):
        members = groups[group(place)]
        if len(members) < least:
            members = wholes[place.component] if alone is None else []
        found.append(value - (_median_without(members, value) if members else alone or 0.0))
    return found


def _median_without(members: Sequence[float], value: float) -> float:
    """Return the median of sorted numbers, of which one is left out."""
    place = bisect_left(members, value)
    rest = len(members) - 1
    if rest == 0:
        return value
    low, high = ((rest - 1) // 2, rest // 2)
    at = [members[k if k < place else k + 1] for k in (low, high)]
    return sum(at) / 2


def typical_largest(measures: Sequence[ModuleFigures]) -> dict[Site, float]:
    """Return site → median of the largest singular values of the same layer in other blocks."""
    known = [
        (m.site, place_of(m.site.name), float(m.singular_values[0]))
        for m in measures
        if m.norm and m.singular_values is not None and len(m.singular_values)
    ]
    own = _medians((((p.component, p.layer), value) for _, p, value in known), _FEWEST)
    whole = _medians(((p.component, value) for _, p, value in known), _FEWEST)
    found = {
        site: own.get((place.component, place.layer), whole.get(place.component))
        for site, place, _ in known
    }
    return {site: value for site, value in found.items() if value is not None}


def spike_caps(
    measures: Sequence[ModuleFigures], limit: float
) -> Iterator[tuple[ModuleFigures, float, float]]:
    """Yield (module with a spike, how far it stands out, the singular value it would usually have).

    A spike is a largest singular value above `limit` times both the module's second and the median of
    the same layer in other blocks.
    """
    typical = typical_largest(measures)
    for m in measures:
        values, usual = m.singular_values, typical.get(m.site)
        if values is None or len(values) < 2 or not usual:
            continue
        second = float(values[1])
        out = float(values[0]) / max(second, usual)
        if out >= limit:
            yield m, out, max(second, usual)


def attention_of(measures: Sequence[ModuleFigures]) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Yield (name of an attention, norms of its queries, keys and values) where all three change."""
    norms = {m.site.name: m.norm for m in measures if m.norm}
    for name in norms:
        stem, _, last = name.rpartition(".")
        for three in _QUERIES:
            found = {one: norms.get(f"{stem}.{one}") for one in three}
            if last == three[0] and all(found.values()):
                yield stem, {one: float(value or 0.0) for one, value in found.items()}
