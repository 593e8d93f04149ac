"""Plan a bake from headers alone, and refuse one that cannot be carried out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loramerge.adapter import Adapter
from loramerge.algebra.terms import naming
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import Checkpoint, CheckpointFile
from loramerge.checkpoint.conversion import Storing, conversion_of
from loramerge.checkpoint.storages import STORAGES
from loramerge.errors import (
    FormatError,
    Setting,
    UsageError,
)
from loramerge.stream.edits import BakePlan, Edit
from loramerge.stream.experts import experts_apart, with_stacks
from loramerge.stream.joining import require_joinable
from loramerge.stream.matching import finder_of, for_base, matched_by_name, parts_of
from loramerge.stream.placements import Placements, require_floats, require_modules, require_shapes
from loramerge.stream.seconds import into_networks
from loramerge.stream.vocabulary import Adapted, adapted

__all__ = ["Matched", "match_adapters", "plan_bake", "require_changeable"]


def plan_bake(
    checkpoint: Checkpoint,
    inputs: Sequence[tuple[Adapter, Weight]],
    *,
    skip_missing: Sequence[str] = (),
    dtype: str | None = None,
    wider: str | None = None,
    storing: Storing | None = None,
    suffix: str = "",
) -> BakePlan:
    """Match adapters to a base, and plan what changes in it.

    Args:
        skip_missing: components whose missing modules may be left out, or `all`.
        dtype: safetensors name of the type for all floating tensors.
        wider: safetensors name of the type for tensors that change and are stored in a narrower one.
        storing: the forms to store weights in; `dtype` is then that of the floats among them.
        suffix: of the output as it is named, see `conversion_of`.

    Raises:
        FamilyError: if an adapter belongs to another family.
        AdapterError: if the base lacks modules of an adapter, or some of those that a delta stored for
            several needs all of.
        UnsupportedKind: if an adapter holds a kind that this version cannot compute with.
        FormatError: if the base stores modules of an adapter as integers, or with scales that are not
            understood.
        ShapeError: listing the modules whose shapes differ.
    """
    matched = match_adapters(checkpoint, inputs, skip_missing)
    base, checkpoint, edits = matched.base, matched.placed, matched.edits
    conversion = None
    if storing is not None:
        conversion = conversion_of(checkpoint, storing, dtype=dtype, suffix=suffix)
        dtype = None
    if dtype is not None:
        require_changeable(checkpoint)
    if not edits and dtype is None and storing is None and not base.notes and not base.warnings:
        raise UsageError("nothing would change: all weights are 0 or all modules were skipped")
    require_joinable((e for some in edits.values() for one in some.values() for e in one), wider)
    warnings = [*base.warnings]
    if conversion is not None and not any(conversion.forms.values()):
        warnings.append(
            f"no tensor gets the storage {conversion.label}: all have it, or are none that it is for; "
            "patterns give it to others"
        )
    notes = [*checkpoint.files.notes, *matched.notes, *base.notes]
    return BakePlan(
        checkpoint,
        edits,
        matched.skipped,
        dtype,
        notes,
        base.config,
        warnings,
        wider,
        conversion,
    )


@dataclass(frozen=True)
class Matched:
    """Adapters, matched to a base.

    Args:
        base: the base as the adapters need it.
        placed: the same, with the places of experts that it stacks in one tensor.
        edits: tensor → its edits, by file.
        skipped: names of adapter modules that the base lacks and that may be skipped.
        notes: what was matched by name where no family is known, and which network of the base each
            adapter changes, where it has two.
    """

    base: Adapted
    placed: Checkpoint
    edits: dict[CheckpointFile, dict[str, list[Edit]]]
    skipped: list[str]
    notes: list[str]


def match_adapters(
    checkpoint: Checkpoint, inputs: Sequence[tuple[Adapter, Weight]], skip_missing: Sequence[str]
) -> Matched:
    """Match adapters, each times its weight, to the places of their modules in a base.

    Raises:
        FamilyError, AdapterError, UnsupportedKind, FormatError, ShapeError: see `plan_bake`.
    """
    for adapter, _ in inputs:
        checkpoint = checkpoint.among(adapter.info.detection.candidates)
    inputs = [(for_base(adapter.require_sound(), checkpoint), weight) for adapter, weight in inputs]
    named = [matched_by_name(adapter, checkpoint) for adapter, _ in inputs]
    if not checkpoint.candidates:
        inputs = [(experts_apart(adapter, checkpoint), weight) for adapter, weight in inputs]
    inputs, networks = into_networks(checkpoint, inputs)
    base = adapted(checkpoint, inputs)
    placed = base.checkpoint
    if not placed.candidates:
        placed = with_stacks(placed, (adapter for adapter, _ in base.inputs))
    placements = Placements(placed)
    for adapter, weight in base.inputs:
        _match(adapter, weight, placements)
    require_floats(placements)
    require_shapes(placements)
    skipped = require_modules(placements, skip_missing)
    return Matched(base, placed, placements.edits(), skipped, [*filter(None, named), *networks])


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
                        "give the type as ",
                        Setting("storage"),
                        " instead",
                    ),
                )
