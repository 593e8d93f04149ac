"""Deltas of two factors, up and down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from loramerge.adapter.delta import AddRows, AlphaPlace, ReadRows
from loramerge.adapter.floats import times, values
from loramerge.adapter.kinds.bases.products import multiply
from loramerge.adapter.kinds.bases.scale import Scale, encoded_scale, scaled_tensor
from loramerge.adapter.kinds.bases.scaled import Scaled
from loramerge.files.tensors import Tensor
from loramerge.files.views import rows_of

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["Factored"]


def _folded(up: Tensor, down: Tensor, factor: float, dtype: str | None) -> tuple[Tensor, Tensor]:
    """Return up and down to write, with a factor folded in.

    Computed factors (float64) share it as √, so that both stay where half types are precise. Stored
    ones take it in up; where that would leave the range in which a half type is precise, a power of
    two goes into down instead.
    """
    if factor != 1.0 and up.dtype == "F64" and not up.unread:
        root = math.sqrt(abs(factor))
        return (
            scaled_tensor(up, math.copysign(root, factor), dtype, "up"),
            scaled_tensor(down, root, dtype, "down"),
        )
    shift = _shift(up, down, factor, dtype or up.dtype)
    return (
        scaled_tensor(up, factor / 2.0**shift, dtype, "up"),
        scaled_tensor(down, 2.0**shift, dtype, "down"),
    )


# smallest normal and largest numbers of half types
_RANGE = {"F16": (2.0**-14, 65504.0), "BF16": (2.0**-126, 3.38e38)}
_MARGIN = 2.0  # above it, what subnormal numbers lose is less than what the type rounds anyway


def _shift(up: Tensor, down: Tensor, factor: float, dtype: str) -> int:
    """Return the power of two that goes into down, 0 where up can take the factor alone.

    If it cannot, the typical sizes of both are made equal.
    """
    if factor in (0.0, 1.0, -1.0) or dtype not in _RANGE or up.unread:
        return 0
    import numpy as np

    smallest, largest = _RANGE[dtype]
    u = np.abs(times(values(up, "float64"), factor))
    with np.errstate(over="ignore", invalid="ignore"):
        typical = math.sqrt(float(np.mean(u * u)))
        other = math.sqrt(float(np.mean(values(down, "float64") ** 2)))
    precise = typical >= _MARGIN * smallest and float(u.max()) <= largest
    if precise or not 0 < typical < math.inf or not 0 < other < math.inf:
        return 0
    return round((math.log2(typical) - math.log2(other)) / 2)


class Factored(Scaled):
    """A delta of two factors with a scale before them; abstract.

    A final class adds its fields, `factors`, and `stored` with `up` and `down` among the roles.
    """

    up: Tensor
    down: Tensor

    @property
    def pair(self) -> Self:
        return self

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        up, down = self.factors(dtype)
        return (up @ down).reshape(self.shape)

    def encoded(self, dtype: str | None, *, alpha: AlphaPlace) -> dict[str, Tensor]:
        if alpha == "apart":
            return self._written(math.copysign(1.0, self.factor), dtype)
        if alpha == "beside" and self.scale.ratio is not None and self.scale.unchanged:
            return self._written(1.0, dtype) | self.scale.beside
        factor, tensor = encoded_scale(self.scale, self.rank, alpha=alpha == "beside")
        roles = self._written(factor, dtype)
        return roles if tensor is None else roles | {"alpha": tensor}

    def stated(self, dtype: str | None, alpha: float) -> dict[str, Tensor]:
        """Return the tensors to write with a given alpha (> 0); the rest goes into the factors.

        Raises:
            NumericsError: if a value does not fit the type.
        """
        factor = self.scale.value(self.rank) * self.rank / alpha
        _, tensor = encoded_scale(Scale(alpha), self.rank, alpha=True)
        assert tensor is not None
        return self._written(factor, dtype) | {"alpha": tensor}

    def _written(self, factor: float, dtype: str | None) -> dict[str, Tensor]:
        up, down = _folded(self.up, self.down, factor, dtype)
        rest = {
            role: scaled_tensor(tensor, 1.0, dtype, role)
            for role, tensor in self.stored().items()
            if role not in ("up", "down")
        }
        return {"up": up, "down": down, **rest}

    def rows(self, ranges: Sequence[tuple[int, int]]) -> Self:
        up = rows_of(self.up, ranges)
        return self._replaced(up=up, shape=(up.shape[0], *self.shape[1:]))

    def row_adder(self, dtype: str = "float32", read: ReadRows | None = None) -> AddRows:
        up, down = self.factors(dtype)

        def add(start: int, stop: int, base: Any, out: Any, fresh: bool) -> None:
            if fresh:
                multiply(up[start:stop], down, out)
            else:
                out += up[start:stop] @ down

        return add
