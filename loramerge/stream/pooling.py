"""Numbers of all parameters of a merge that an operator needs to know together."""

from __future__ import annotations

from typing import Any

from loramerge.algebra.workers import ordered
from loramerge.events import Notify
from loramerge.stream.combining import Combining
from loramerge.stream.ingredients import Blend, Blends
from loramerge.stream.walk import Buffers

__all__ = ["pooled"]


def pooled(blends: Blends, threads: int | None, notify: Notify) -> Any:
    """Return what the operator makes of the numbers of all parameters; None where it asks for none.

    The inputs are read once for it, in blocks of rows.
    """
    import numpy as np

    several = [
        blend
        for tensors in blends.values()
        for parts in tensors.values()
        for blend in parts
        if blend.method.operator.pool is not None and len(blend.terms) > 1
    ]
    if not several:
        return None
    pool = several[0].method.operator.pool
    assert pool is not None
    buffers = Buffers()

    def numbers(blend: Blend) -> Any:
        return pool.of(Combining(blend, buffers).statistics(), blend.method.parameters)

    found = ordered(numbers, several, threads=threads, task="comparing", notify=notify)
    return pool.reduce(np.concatenate(list(found)))
