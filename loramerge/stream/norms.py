"""Norms of the weights that an adapter changes, read from a base one module at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from loramerge.adapter import Adapter, Site
from loramerge.adapter.delta import ReadRows
from loramerge.algebra.leading import decompose_leading
from loramerge.algebra.terms import naming
from loramerge.algebra.workers import ordered
from loramerge.checkpoint import Checkpoint
from loramerge.errors import AdapterError, NumericsError, ShapeError, listed
from loramerge.events import Notify, ignore
from loramerge.stream.matching import Part, finder_of, parts_of, require_family
from loramerge.stream.reading import read_weights

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["NORMS", "norms_of"]

_BLOCK = 1 << 20  # elements that are read at a time where rows are enough


def norms_of(
    adapter: Adapter,
    base: Checkpoint,
    norm: str,
    *,
    threads: int | None = None,
    notify: Notify = ignore,
) -> dict[Site, float]:
    """Return ‖W‖ of the weight of every matrix whose change has a rank that can be lowered.

    Args:
        norm: `frobenius`, √Σw², or `spectral`, the largest singular value.

    Raises:
        FamilyError: if the adapter belongs to another family.
        AdapterError: if the base lacks modules of the adapter.
        ShapeError: if a module of the base has another shape.
        NumericsError: if a weight is zero, or holds NaN or infinity.
    """
    require_family(adapter, base)
    find = finder_of(adapter, base)
    sites = [
        site
        for site, delta in adapter.deltas.items()
        if len(delta.shape) > 1 and not delta.needs_base
    ]
    parts = {site: list(parts_of(adapter, site, adapter.deltas[site], find)) for site in sites}
    _require_all(adapter, base, parts)

    def measure(site: Site) -> float:
        with naming(site):
            delta = adapter.deltas[site]
            if not all(
                part.fits(delta, place.shape) for part in parts[site] for place in part.places
            ):
                raise ShapeError(
                    "the base and the adapter differ in shape",
                    file=base.path,
                    expected=list(delta.shape),
                    found=", ".join(str(list(part.places[0].shape)) for part in parts[site]),
                    hint="the adapter was trained on a base of another size",
                )
            read = read_weights(parts[site][0].stretches[0], "float32")
            found = NORMS[norm](read, *delta.flat_shape)
            if not 0.0 < found < math.inf:
                raise NumericsError(
                    "the weight in the base has no size that a change can be compared with",
                    file=base.path,
                    found="zeros" if found == 0.0 else "NaN or infinity",
                    hint="give another base, or leave relative_to out",
                )
            return found

    found = ordered(measure, sites, threads=threads, task="norms of the base", notify=notify)
    return dict(zip(sites, found, strict=True))


def _require_all(adapter: Adapter, base: Checkpoint, parts: Mapping[Site, Iterable[Part]]) -> None:
    missing = [site.name for site, found in parts.items() if not all(part.places for part in found)]
    if missing:
        raise AdapterError(
            f"the base lacks {len(missing)} modules that the adapter changes",
            file=base.path,
            module=listed(missing, 4),
            hint="give a base that has them, such as the one the adapter was trained on",
        )


def _frobenius(read: ReadRows, rows: int, columns: int) -> float:
    import numpy as np

    step = max(1, _BLOCK // max(1, columns))
    edges = [*range(0, rows, step), rows]
    blocks = (read(start, stop).astype("float64") for start, stop in pairwise(edges))
    return float(np.sqrt(math.fsum(float((block**2).sum()) for block in blocks)))


def _spectral(read: ReadRows, rows: int, columns: int) -> float:
    import numpy as np

    whole = read(0, rows)
    if not np.isfinite(whole).all():
        return math.nan
    return float(decompose_leading(whole, 1).singular_values[0])


NORMS: Mapping[str, Callable[[ReadRows, int, int], float]] = {
    "frobenius": _frobenius,
    "spectral": _spectral,
}
