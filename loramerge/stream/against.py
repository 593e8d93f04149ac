"""Convert adapters whose change depends on a base to ordinary ones, with that base."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from loramerge.adapter import Adapter, Delta, Full, Site
from loramerge.algebra.terms import naming
from loramerge.checkpoint import Checkpoint
from loramerge.errors import AdapterError, FormatError, ShapeError, listed
from loramerge.files.tensors import ComputedTensor
from loramerge.stream.heads import with_heads
from loramerge.stream.matching import PlacesOf, finder_of, for_base, require_family
from loramerge.stream.reading import Stretch, read_weights

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["against", "stretches_of"]


def against(adapter: Adapter, base: Checkpoint) -> Adapter:
    """Return the adapter with ordinary differences where its deltas depend on the base.

    Only headers are read here; a difference is computed when its values are needed, one module at a
    time.

    Raises:
        FamilyError: if the adapter belongs to another family.
        AdapterError: if the base lacks modules that depend on it.
        ShapeError: if a module of the base has another shape.
        FormatError: if the base stores one as integers, or with scales beside.
    """
    base = base.among(adapter.info.detection.candidates)
    adapter = with_heads(adapter, base)
    adapter = for_base(adapter, base) if base.is_unknown else adapter
    dependent = {s: d for s, d in adapter.deltas.items() if d.needs_base and d.facts.computable}
    if not dependent:
        return adapter
    require_family(adapter, base)
    find = finder_of(adapter, base)
    places = {site: stretches_of(find, site, delta) for site, delta in dependent.items()}
    missing = [
        site.name for site, d in dependent.items() if not places[site] and not d.facts.optional
    ]
    if missing:
        raise AdapterError(
            f"the base lacks {len(missing)} modules whose change depends on it",
            file=base.path,
            module=listed(missing, 4),
            hint="give the base the adapter was trained on",
        )
    deltas: dict[Site, Delta] = {}
    for site, delta in adapter.deltas.items():
        if site not in dependent:
            deltas[site] = delta
            continue
        if stretches := places[site]:
            with naming(site, adapter.info.path):
                placed = delta.at(_shape_of(stretches)) if _fits(delta, stretches) else delta
                deltas[site] = _difference(site, delta, stretches) if placed.needs_base else placed
    return adapter.with_deltas(deltas, dtype=adapter.dtype)


def stretches_of(find: PlacesOf, site: Site, delta: Delta) -> list[Stretch]:
    """Return the places of a site's weight in a base, none where it lacks a part of the weight."""
    found, start = [], 0
    rows = pairwise(site.bounds(delta.shape[0]))
    for module, (first, last) in zip(site.modules, rows, strict=True):
        places = find(module, site.parameter, (last - first, *delta.shape[1:]))
        if not places:
            return []
        found.append((start, places[0]))
        start += places[0].shape[0]
    return found


def _shape_of(stretches: Sequence[Stretch]) -> tuple[int, ...]:
    begin, last = stretches[-1]
    return (begin + last.shape[0], *last.shape[1:])


def _fits(delta: Delta, stretches: Sequence[Stretch]) -> bool:
    """Return whether a delta changes the weight of these places, which then differ in rows only."""
    alike = len({place.shape[1:] for _, place in stretches}) == 1
    return alike and delta.fits(_shape_of(stretches))


def _difference(site: Site, delta: Delta, stretches: Sequence[Stretch]) -> Full:
    for _, place in stretches:
        if place.held is None:
            raise FormatError(
                "the base is quantised, and a change that depends on it cannot be computed",
                found=f"{place.name} ({place.tensor.dtype})",
                hint="give the model that it was quantised from",
            )
    shape = _shape_of(stretches)
    if not _fits(delta, stretches):
        raise ShapeError(
            "the base and the adapter differ in shape",
            expected=list(shape),
            found=list(delta.shape),
            hint="the adapter was trained on a base of another size",
        )
    dtypes = {p.tensor.dtype for _, p in stretches} | {t.dtype for t in delta.stored().values()}
    dtype = "float64" if "F64" in dtypes else "float32"
    read = read_weights(stretches, "float64")

    def make() -> Array:
        change: Array = delta.dense(read(0, shape[0]).reshape(shape)).reshape(shape).astype(dtype)
        return change

    tensor = ComputedTensor("F64" if dtype == "float64" else "F32", shape, make)
    return Full.of(tensor, "diff" if site.parameter == "weight" else "diff_b")
