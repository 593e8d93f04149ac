"""Plan a bake from headers alone, and refuse one that cannot be carried out."""

from __future__ import annotations

from collections.abc import Sequence

from loramerge.adapter import Adapter
from loramerge.algebra.terms import naming
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import Checkpoint
from loramerge.checkpoint.storages import STORAGES
from loramerge.errors import (
    FormatError,
    Setting,
    UsageError,
)
from loramerge.stream.edits import BakePlan
from loramerge.stream.experts import experts_apart, with_stacks
from loramerge.stream.matching import finder_of, parts_of, require_family
from loramerge.stream.placements import Placements, require_floats, require_modules, require_shapes
from loramerge.stream.seconds import into_networks
from loramerge.stream.vocabulary import adapted

__all__ = ["plan_bake", "require_changeable"]


def plan_bake(
    checkpoint: Checkpoint,
    inputs: Sequence[tuple[Adapter, Weight]],
    *,
    skip_missing: Sequence[str] = (),
    dtype: str | None = None,
) -> BakePlan:
    """Match adapters to a base, and plan what changes in it.

    Args:
        skip_missing: components whose missing modules may be left out, or `all`.
        dtype: safetensors name of the type for all floating tensors.

    Raises:
        FamilyError: if an adapter belongs to another family.
        AdapterError: if the base lacks modules of an adapter, or some of those that a delta stored for
            several needs all of.
        UnsupportedKind: if an adapter holds a kind that this version cannot compute with.
        FormatError: if the base stores modules of an adapter as integers, or with scales that are not
            understood.
        ShapeError: listing the modules whose shapes differ.
    """
    for adapter, _ in inputs:
        adapter.require_sound()
        require_family(adapter, checkpoint)
    if not checkpoint.candidates:
        inputs = [(experts_apart(adapter, checkpoint), weight) for adapter, weight in inputs]
    inputs, networks = into_networks(checkpoint, inputs)
    base = adapted(checkpoint, inputs)
    checkpoint = base.checkpoint
    if not checkpoint.candidates:
        checkpoint = with_stacks(checkpoint, (adapter for adapter, _ in base.inputs))
    placements = Placements(checkpoint)
    for adapter, weight in base.inputs:
        _match(adapter, weight, placements)
    require_floats(placements)
    require_shapes(placements)
    skipped = require_modules(placements.missing, skip_missing, checkpoint)
    if dtype is not None:
        require_changeable(checkpoint)
    edits = placements.edits()
    if not edits and dtype is None and not base.notes and not base.warnings:
        raise UsageError("nothing would change: all weights are 0 or all modules were skipped")
    notes = [*checkpoint.files.notes, *networks, *base.notes]
    return BakePlan(checkpoint, edits, skipped, dtype, notes, base.config, [*base.warnings])


def _match(adapter: Adapter, weight: Weight, placements: Placements) -> None:
    """Match every delta of an adapter, times its weight, to the places of its modules."""
    weight_of = weight.on(adapter)
    places_of = finder_of(adapter, placements.checkpoint)
    for site, delta in adapter.deltas.items():
        factor = weight_of(site)
        if factor == 0.0:
            continue
        with naming(site, adapter.info.path):
            if not delta.facts.computable:
                delta.dense()  # refuses
            scaled = delta if factor == 1.0 else delta.scaled(factor)
        for part in parts_of(adapter, site, delta, places_of):
            if part.places:
                placements.add(part, scaled)
            elif not delta.facts.optional:
                placements.missing.setdefault(site.component, []).append(part.site.name)


def require_changeable(checkpoint: Checkpoint) -> None:
    """Refuse another type for weights that are stored with scales.

    Raises:
        FormatError: naming the storage.
    """
    for file in checkpoint.files.weights:
        for storage in STORAGES.known():
            if storage.fixes_types(file.open()[0]):
                raise FormatError(
                    f"a {storage.name} base with scales cannot be given another type",
                    file=file.path,
                    hint=(
                        "leave out ",
                        Setting("dtype"),
                        ", or bake into the base it was made from",
                    ),
                )
