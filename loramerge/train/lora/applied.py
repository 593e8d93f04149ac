"""Add adapters of any kind to a pipeline for a while: change weights in place, then restore them.

The result is that of `bake`: every ΔW is computed from the original weight; the sum is rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from loramerge.adapter import Adapter, Delta, Site
from loramerge.errors import AdapterError, ShapeError, listed
from loramerge.train.lora.names import homes_of

__all__ = ["applied"]

Place = tuple[str, str, str]  # component, path, parameter


@contextmanager
@torch.no_grad()
def applied(models: Mapping[str, nn.Module], adapters: Sequence[Adapter]) -> Iterator[int]:
    """Add adapters to models for a while; yield the number of changed weights.

    Args:
        models: component → model.

    Raises:
        AdapterError: if the models lack a module of an adapter; then nothing is changed.
        ShapeError: if a module of a model has another shape.
    """
    terms: dict[Place, list[tuple[Adapter, Site, Delta, int]]] = {}
    for adapter in adapters:
        # an adapter at weight 0 has no deltas
        for place, term in _placed(models, adapter) if adapter.deltas else ():
            terms.setdefault(place, []).append(term)
    kept: dict[Place, Any] = {}
    try:
        for place, found in terms.items():
            weight = _weight(models, place)
            total = sum(_change(weight, *term) for term in found)
            kept[place] = weight.detach().clone()
            # in float64 on the CPU, because Metal has none
            weight.copy_((weight.detach().cpu().double() + total).to(weight.dtype))
        yield len(kept)
    finally:
        for place, before in kept.items():
            _weight(models, place).copy_(before)


def _placed(
    models: Mapping[str, nn.Module], adapter: Adapter
) -> Iterator[tuple[Place, tuple[Adapter, Site, Delta, int]]]:
    """Yield the place of each module of an adapter, and its delta with its index in the site."""
    adapter.require_sound()
    homes = homes_of(dict(models), adapter.info.detection.naming, every=True)
    strangers = [site.name for site in adapter.deltas if not all(m in homes for m in site.modules)]
    if strangers:
        raise AdapterError(
            f"{len(strangers)} of {len(adapter.deltas)} modules are not in the model",
            file=adapter.info.path,
            module=listed(strangers, 4),
            hint="the adapter was made for another base",
        )
    for site, delta in adapter.deltas.items():
        for index, module in enumerate(site.modules):
            component, path = homes[module]
            yield (component, path, site.parameter), (adapter, site, delta, index)


def _weight(models: Mapping[str, nn.Module], place: Place) -> Any:
    component, path, parameter = place
    return getattr(models[component].get_submodule(path), parameter)


def _change(weight: Any, adapter: Adapter, site: Site, delta: Delta, index: int) -> Any:
    """Return the ΔW of one module in float64, on the CPU."""
    shape = tuple(weight.shape)
    alone = len(site.modules) == 1
    if alone:
        delta = delta.conformed(shape)
    base = weight.detach().cpu().double().numpy() if delta.needs_base else None
    dense = delta.dense(base)
    if not alone:
        bounds = site.bounds(dense.shape[0])
        dense = dense[bounds[index] : bounds[index + 1]]
    if dense.size != weight.numel():
        raise ShapeError(
            "the module has another shape in the model",
            file=adapter.info.path,
            module=site.name,
            expected=list(shape),
            found=list(dense.shape),
        )
    return torch.from_numpy(dense.reshape(shape))
