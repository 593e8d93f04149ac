"""Intruder dimensions: leading directions of a changed weight that the weight itself does not have.

A fine-tune of all weights turns the leading singular vectors a little; a LoRA may add some that are
nearly orthogonal to all of the base's.

Source: Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence" (arXiv 2410.21228),
definition 1, with 10 directions and ε = 0.6.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from loramerge.adapter import Adapter, Delta, Site
from loramerge.algebra.leading import decompose_leading
from loramerge.algebra.workers import ordered
from loramerge.checkpoint import Checkpoint
from loramerge.events import Notify, ignore
from loramerge.stream.matching import finder_of, parts_of
from loramerge.stream.reading import read_weights

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["Intruders", "intruders", "intruders_of"]

_DIRECTIONS = 10
_COSINE = 0.6


class Intruders(NamedTuple):
    """The intruders of an adapter.

    Args:
        counts: site → number of intruders.
        directions: leading directions of all sites that were looked at.
    """

    counts: dict[Site, int]
    directions: int

    @property
    def share(self) -> float:
        """Share of the leading directions that are intruders."""
        return sum(self.counts.values()) / self.directions if self.directions else 0.0


def intruders_of(weight: Array, change: Array, cosine: float = _COSINE) -> int:
    """Return the number of intruders among the leading directions of a changed weight.

    Args:
        weight, change: `(out, in)`.
        cosine: a leading left singular vector of `weight + change` whose largest absolute cosine with
            the left singular vectors of `weight` is below it is an intruder.

    A change whose largest singular value is below the quadratic mean of the weight's puts no direction
    among the leading ones, and is not decomposed.
    """
    import numpy as np

    short = min(weight.shape)
    usual = float(np.linalg.norm(weight)) / short**0.5
    leading = min(_DIRECTIONS, short)
    if float(decompose_leading(change, 1).singular_values[0]) <= usual:
        return 0
    new, _ = decompose_leading(weight + change, leading).truncate(leading)
    new = new / np.linalg.norm(new, axis=0)
    old, _, _ = np.linalg.svd(weight, full_matrices=False)
    return int((np.abs(old.T @ new).max(axis=0) < cosine).sum())


def intruders(
    adapter: Adapter,
    base: Checkpoint,
    *,
    threads: int | None = None,
    notify: Notify = ignore,
) -> Intruders:
    """Count the intruders of the matrices that the base has under one name and shape."""
    found = list(_matrices(adapter, base))

    def count(one: tuple[Site, Delta, Any]) -> int:
        _, delta, stretches = one
        read = read_weights(stretches, "float32")
        rows, columns = delta.flat_shape
        weight = read(0, rows).reshape(rows, columns)
        return intruders_of(weight, delta.dense(None, "float32").reshape(rows, columns))

    counts = ordered(count, found, threads=threads, task="directions of the base", notify=notify)
    named = {site: number for (site, _, _), number in zip(found, counts, strict=True)}
    return Intruders(named, sum(min(_DIRECTIONS, *delta.flat_shape) for _, delta, _ in found))


def _matrices(adapter: Adapter, base: Checkpoint) -> Iterator[tuple[Site, Delta, Any]]:
    find = finder_of(adapter, base)
    for site, delta in adapter.deltas.items():
        if len(delta.shape) < 2 or delta.needs_base or not delta.facts.computable:
            continue
        parts = list(parts_of(adapter, site, delta, find))
        whole = len(parts) == 1 and parts[0].places and parts[0].stretches
        if whole and all(parts[0].fits(delta, place.shape) for place in parts[0].places):
            yield site, delta, parts[0].stretches[0]
