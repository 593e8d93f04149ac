"""Adapters whose change depends on a base, turned into ordinary ones by giving them that base."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from loramerge.adapter import Adapter, Delta, Full, Site
from loramerge.algebra.combine import naming
from loramerge.checkpoint import Checkpoint, Place
from loramerge.errors import AdapterError, FormatError, ShapeError, listed
from loramerge.files.dtypes import is_float
from loramerge.files.tensors import ComputedTensor
from loramerge.stream.bake import require_family

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["against"]


def against(adapter: Adapter, base: Checkpoint) -> Adapter:
    """Return the adapter with ordinary differences where its deltas depend on the base.

    Only headers are read here; a difference is computed when its values are asked for, one module
    at a time.

    Raises:
        FamilyError: if the adapter belongs to another family.
        AdapterError: if the base lacks modules that depend on it.
        ShapeError: if a module of the base has another shape.
        FormatError: if the base stores one as integers, or with scales beside.
    """
    dependent = {s: d for s, d in adapter.deltas.items() if d.needs_base and d.computable}
    if not dependent:
        return adapter
    require_family(adapter, base)
    missing = [
        site.name for site, d in dependent.items() if not _places(base, site) and not d.optional
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
        places = _places(base, site)
        if places:
            with naming(site, adapter.info.path):
                deltas[site] = _difference(site, delta, places[0])
    return adapter.with_deltas(deltas, dtype=adapter.dtype)


def _places(base: Checkpoint, site: Site) -> list[Place]:
    return base.slots.get((site.modules[0], site.parameter), []) if len(site.modules) == 1 else []


def _difference(site: Site, delta: Delta, place: Place) -> Full:
    if not is_float(place.tensor.dtype):
        raise FormatError(
            "the base is quantised, and a change that depends on it cannot be computed",
            found=f"{place.name} ({place.tensor.dtype})",
            hint="give the base it was made from",
        )
    if not delta.fits(place.shape):
        raise ShapeError(
            "the base and the adapter differ in shape",
            expected=list(place.shape),
            found=list(delta.shape),
            hint="the adapter was trained on a base of another size",
        )
    wide = "F64" in {place.tensor.dtype, *(t.dtype for t in delta.stored().values())}
    make = _maker(delta, place, "float64" if wide else "float32")
    tensor = ComputedTensor("F64" if wide else "F32", place.shape, make)
    return Full.of(tensor, "diff" if site.parameter == "weight" else "diff_b")


def _maker(delta: Delta, place: Place, dtype: str) -> Callable[[], Array]:
    """Return the function that computes ΔW of a delta at a place of the base."""

    def make() -> Array:
        start, stop = place.rows
        stored = place.tensor.numpy().reshape(place.tensor.shape[0], -1)[start:stop]
        weight = stored.astype("float64")
        if place.scale is not None:
            weight *= place.scale.column(place.tensor.shape[0])[start:stop]
        weight = (weight.T if place.transposed else weight).reshape(place.shape)
        change: Array = delta.dense(weight).reshape(place.shape).astype(dtype)
        return change

    return make
