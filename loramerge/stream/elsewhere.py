"""Distances between the change of an adapter and those that programs compute in its place."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, sqrt

from loramerge.adapter import Adapter
from loramerge.adapter.elsewhere import FORMULAS, computed_elsewhere
from loramerge.adapter.readers import Reading
from loramerge.algebra.terms import naming
from loramerge.checkpoint import Checkpoint
from loramerge.stream.against import stretches_of
from loramerge.stream.matching import finder_of
from loramerge.stream.reading import read_weights

__all__ = ["distances"]


def distances(adapter: Adapter, base: Checkpoint, readings: Iterable[Reading]) -> dict[str, float]:
    """Return ‖ΔW' − ΔW‖ / ‖ΔW‖ of each program that computes ΔW' in the place of ΔW.

    The norms are over the modules that it reads, one of which is in memory at a time. Programs of
    which no formula is known are left out, and so are modules that the base lacks.

    Returns:
        title of the program → distance.
    """
    found = list(readings)
    wanted = {
        one.program.title: {name: what for what, names in one.otherwise.items() for name in names}
        for one in found
        if one.otherwise and one.otherwise.keys() <= FORMULAS.keys()
    }
    squares = {title: [0.0, 0.0] for title in wanted}
    unread = {one.program.title: set(one.unread) for one in found if one.program.title in wanted}
    find = finder_of(adapter, base)
    for site, delta in adapter.deltas.items() if wanted else ():
        stretches = stretches_of(find, site, delta)
        if not stretches or not delta.facts.computable:
            continue
        begin, last = stretches[-1]
        shape = (begin + last.shape[0], *last.shape[1:])
        with naming(site, adapter.info.path):
            weight = read_weights(stretches, "float64")(0, shape[0]).reshape(shape)
            change = delta.dense(weight).reshape(shape)
            size = float((change**2).sum())
            for title, otherwise in wanted.items():
                if site.name in unread[title]:
                    continue
                squares[title][1] += size
                if (what := otherwise.get(site.name)) is not None:
                    other = computed_elsewhere(what, delta, weight)
                    squares[title][0] += float(((other - change) ** 2).sum())
    return {
        title: sqrt(off / whole) if whole else (inf if off else 0.0)
        for title, (off, whole) in squares.items()
    }
