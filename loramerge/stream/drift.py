"""The distance of two bases of one family, at the modules that an adapter changes.

An adapter is trained against one base. If another base differs much from it, above all inside the
subspace that the adapter reads and writes, the adapter acts on weights that it was not trained on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loramerge.adapter import Adapter, Delta, Site
from loramerge.adapter.sites import cut
from loramerge.algebra.compare import block_of
from loramerge.algebra.workers import ordered
from loramerge.checkpoint import Checkpoint, Place
from loramerge.errors import FamilyError, ShapeError
from loramerge.events import Notify, ignore
from loramerge.stream.matching import finder_of, for_base
from loramerge.stream.reading import weights_of

__all__ = ["NO_DRIFT", "Drift", "by_block", "drift"]


@dataclass(frozen=True)
class Drift:
    """Squared norms of one module; they add up over modules.

    Args:
        base: ‖W_A‖². moved: ‖W_B − W_A‖².
        inside: ‖Q_uᵀ W_A Q_d‖² with Q the orthonormal bases of the adapter's columns and rows.
        inside_moved: ‖Q_uᵀ (W_B − W_A) Q_d‖².
    """

    base: float
    moved: float
    inside: float
    inside_moved: float

    def __add__(self, other: Drift) -> Drift:
        return Drift(
            self.base + other.base,
            self.moved + other.moved,
            self.inside + other.inside,
            self.inside_moved + other.inside_moved,
        )

    @property
    def distance(self) -> float:
        """‖W_B − W_A‖ / ‖W_A‖."""
        return math.sqrt(self.moved / self.base) if self.base > 0 else 0.0

    @property
    def subspace(self) -> float:
        """‖Q_uᵀ (W_B − W_A) Q_d‖ / ‖Q_uᵀ W_A Q_d‖: the distance inside the adapter's subspace."""
        return math.sqrt(self.inside_moved / self.inside) if self.inside > 0 else 0.0


NO_DRIFT = Drift(0.0, 0.0, 0.0, 0.0)


def drift(
    adapters: Sequence[Adapter],
    trained_on: Checkpoint,
    base: Checkpoint,
    *,
    threads: int | None = None,
    notify: Notify = ignore,
) -> dict[Site, Drift]:
    """Measure the distance of `base` from `trained_on` at every low-rank site of the adapters.

    Raises:
        FamilyError: if the two bases belong to different families.
        ShapeError: if a module has another shape in the adapter than in a base.
    """
    named = base.candidates or trained_on.candidates
    if named and not any(family in base.candidates for family in trained_on.candidates):
        raise FamilyError(
            "the two bases belong to different families",
            file=f"{trained_on.path} and {base.path}",
            expected=base.family_name,
            found=trained_on.family_name,
        )
    work: list[tuple[Site, Delta, Place, Place]] = []
    for adapter in (for_base(adapter, base) for adapter in adapters):
        find, find_before = finder_of(adapter, base), finder_of(adapter, trained_on)
        for site, delta in _alone(adapter):
            key = (site.modules[0], site.parameter, delta.shape)
            before, now = find_before(*key), find(*key)
            if delta.rank is None or not before or not now:
                continue
            a, b = before[0], now[0]
            for place, file in ((a, trained_on.path), (b, base.path)):
                if (place.shape[0], math.prod(place.shape[1:])) != delta.flat_shape:
                    raise ShapeError(
                        "the base and the adapter differ in shape",
                        file=file,
                        module=site.name,
                        expected=list(delta.shape),
                        found=list(place.shape),
                    )
            work.append((site, delta, a, b))
    found = ordered(_measure, work, threads=threads, task="comparing bases", notify=notify)
    result: dict[Site, Drift] = {}
    for (site, *_), one in zip(work, found, strict=True):
        result[site] = result[site] + one if site in result else one
    return result


def by_block(found: Mapping[Site, Drift]) -> dict[str, Drift]:
    """Return the sums over the modules of each block of the model."""
    blocks: dict[str, Drift] = {}
    for site, one in found.items():
        name = block_of(site)
        blocks[name] = blocks.get(name, NO_DRIFT) + one
    return blocks


def _alone(adapter: Adapter) -> Iterator[tuple[Site, Delta]]:
    """Yield the deltas of single modules; fused ones are cut."""
    for site, delta in adapter.deltas.items():
        if delta.rank is not None:
            yield from cut(site, delta, [Site((m,), site.parameter) for m in site.modules])


def _measure(item: tuple[Site, Delta, Place, Place]) -> Drift:
    import numpy as np

    _, delta, place_a, place_b = item
    before = weights_of(place_a, "float64")
    moved = weights_of(place_b, "float64") - before
    up, down = delta.factors("float64")
    left, right = _orthonormal(up), _orthonormal(down.T)
    return Drift(
        float((before**2).sum()),
        float((moved**2).sum()),
        float(np.sum((left.T @ before @ right) ** 2)),
        float(np.sum((left.T @ moved @ right) ** 2)),
    )


def _orthonormal(columns: Any) -> Any:
    """Return an orthonormal basis of the columns' span, without zero directions."""
    import numpy as np

    u, s, _ = np.linalg.svd(columns, full_matrices=False)
    return u[:, s > 1e-7 * s[0]] if len(s) and s[0] > 0 else u[:, :0]
