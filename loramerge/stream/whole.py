"""A merge as a whole, as the making of one of its tensors needs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from loramerge.adapter.delta import ReadRows
from loramerge.checkpoint import Place
from loramerge.stream.combining import Combining
from loramerge.stream.ingredients import Blend, Blends
from loramerge.stream.reading import Stretch, read_weights, stored_weights
from loramerge.stream.walk import Buffers

__all__ = ["Whole"]


class Whole:
    """The knowledge of all tensors of a merge that the making of one needs.

    Attributes:
        pooled: what the operator knows of all parameters together, see `Operator.pool`.
    """

    def __init__(self, blends: Blends, pooled: Any = None) -> None:
        self._blends, self.pooled = blends, pooled

    def reader(self, stretches: Sequence[Stretch], kind: str) -> ReadRows:
        """Return the function that reads any rows of a merged weight, not rounded.

        Args:
            stretches: where the first checkpoint stores it.
            kind: numpy float type of the result.
        """
        return read_weights(stretches, kind, stored=_Merged(self._blends, kind, self.pooled).rows)


class _Merged:
    """Computes stored rows of merged tensors, in buffers of its own."""

    def __init__(self, blends: Blends, kind: str, pooled: Any) -> None:
        self._blends, self._kind, self._pooled = blends, kind, pooled
        self._made: dict[tuple[PurePosixPath, str], list[Any]] = {}

    def rows(self, place: Place, start: int, stop: int) -> Any:
        """Return stored rows of the tensor at a place."""
        import numpy as np

        blends = self._blends.get(place.file.relative, {}).get(place.name, ())
        if not blends:
            return stored_weights(self._kind)(place, start, stop)
        found: Any = None
        for blend, merged in zip(blends, self._rows_of(place, blends), strict=True):
            target = blend.target
            for low, high, begin in target.pieces:
                first, last = max(start, low), min(stop, high)
                if first >= last:
                    continue
                if target.transposed:
                    part = merged(0, target.shape[0]).T[first:last]
                else:
                    part = merged(begin + first - low, begin + last - low)
                if found is None:
                    found = np.empty((stop - start, part.shape[1]), self._kind)
                found[first - start : last - start] = part
        return found

    def _rows_of(self, place: Place, blends: Sequence[Blend]) -> list[Any]:
        key = place.file.relative, place.name
        if key not in self._made:
            self._made[key] = [
                Combining(blend, Buffers(), self._pooled).merged(self._kind) for blend in blends
            ]
        return self._made[key]
