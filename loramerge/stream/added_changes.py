"""The changes of adapters that a merge adds to what the checkpoints make.

They are matched to the layout of the first checkpoint as in a bake. A change that depends on the weight
it lies on is computed from the merged weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from loramerge.adapter import Adapter, Site
from loramerge.algebra.combine import SUM
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import Checkpoint, Place
from loramerge.checkpoint.files import CheckpointFiles
from loramerge.errors import AdapterError
from loramerge.stream.edits import Edit
from loramerge.stream.ingredients import Blend, Ingredient
from loramerge.stream.plan import match_adapters

_APART = "merge the checkpoints first, then bake the adapter into the result"

__all__ = ["Added", "add_changes"]


@dataclass(frozen=True)
class Added:
    """The notes on the adapters of a merge.

    Args:
        skipped: names of modules that were left out.
        notes: which network of the first checkpoint each changes, where it has two.
    """

    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def add_changes(
    blends: dict[PurePosixPath, dict[str, list[Blend]]],
    first: Checkpoint,
    files: CheckpointFiles,
    adapters: Sequence[tuple[Adapter, Weight]],
    skip_missing: Sequence[str] = (),
) -> Added:
    """Add the changes of adapters to the parameters that a merge makes.

    Args:
        blends: file → tensor → the making of its parameters; changed here.
        first: the checkpoint whose layout the result has.
        files: its files, with tensors that others bring along.
        skip_missing: components whose missing modules may be left out, or `all`.

    Raises:
        AdapterError: if an adapter brings a whole weight in place of the merged one, or changes the
            vocabulary.
        LoramergeError: see `plan.match_adapters`.
    """
    if not adapters:
        return Added()
    for adapter, weight in adapters:
        _require_changes(adapter, weight)
    matched = match_adapters(first, adapters, skip_missing)
    if matched.base.checkpoint.files is not first.files:
        raise _not_a_change(adapters[0][0], "; ".join(matched.base.notes) or None)
    current = {file.relative: file for file in files.weights}
    for file, tensors in matched.edits.items():
        here = blends.setdefault(file.relative, {})
        for name, edits in tensors.items():
            if name not in here:  # what is not merged is changed as it is
                place = Place(current[file.relative], current[file.relative].open()[0][name], name)
                site = Site((name,))
                here[name] = [Blend(site, place, (Ingredient(place, 1.0, 0),), SUM)]
            if edits[0].place.tensor.shape != here[name][0].target.tensor.shape:
                raise _of_stacked_experts(name, first)
            here[name] = [_changed(blend, edits) for blend in here[name]]
    return Added(matched.skipped, matched.notes)


def _changed(blend: Blend, edits: Sequence[Edit]) -> Blend:
    """Return the making of a parameter with the edits of its rows."""
    start, stop = blend.target.rows
    own = tuple(e for e in edits if e.place.rows[0] < stop and start < e.place.rows[1])
    return replace(blend, edits=own)


def _require_changes(adapter: Adapter, weight: Weight) -> None:
    """Refuse an adapter that contains the weights of layers beside the factors that change them.

    Raises:
        AdapterError: naming the first module.
    """
    of = weight.on(adapter)
    for site in adapter.deltas:
        if site.parameter == "base" and of(site):
            raise _not_a_change(adapter, site.name)


def _of_stacked_experts(name: str, first: Checkpoint) -> AdapterError:
    return AdapterError(
        "the first checkpoint stacks experts in one tensor, whose merge an adapter of experts cannot "
        "be added to",
        file=first.path,
        module=name,
        hint=_APART,
    )


def _not_a_change(adapter: Adapter, found: str | None) -> AdapterError:
    return AdapterError(
        "the adapter brings whole weights that take the place of the merged ones, or changes the "
        "vocabulary",
        file=adapter.label,
        found=found,
        hint=_APART,
    )
