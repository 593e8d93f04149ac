"""Low-rank factors with a sparse rest beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import AddRows, Facts, ReadRows
from loramerge.adapter.floats import times, values
from loramerge.adapter.kinds import make_weight
from loramerge.adapter.kinds.bases.factored import Factored
from loramerge.adapter.kinds.bases.scale import Scale
from loramerge.adapter.kinds.bases.scaled import Scaled
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.errors import ShapeError
from loramerge.files.dtypes import is_float
from loramerge.files.tensors import ArrayTensor, Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "SparseSum"]


@final
@dataclass(frozen=True, eq=False)
class SparseSum(Scaled):
    """`ΔW = scale · (up @ down + S)`: what LyCORIS' extraction keeps beside the low rank.

    Args:
        product: the low-rank part, without a scale.
        parts: `bias_indices (axes, n)`, `bias_values (n,)` and `bias_size (axes,)` of S in
            coordinates; its axes are those of ΔW or its flattened form.

    S is added before the scale (LyCORIS' own extension for A1111, lyco_calc_updown).
    """

    product: Factored
    parts: Mapping[str, Tensor]
    shape: tuple[int, ...]
    scale: Scale = Scale()

    facts: ClassVar[Facts] = Facts(compact=True)
    kind: ClassVar[str] = "sparse-bias"

    @classmethod
    def of(
        cls, product: Factored, parts: Mapping[str, Tensor], scale: Scale = Scale(), what: str = ""
    ) -> SparseSum:
        """Make the delta of stored tensors, checking that they fit.

        Raises:
            ShapeError: if the sparse part is not of the size of ΔW.
        """
        indices, amounts = parts["bias_indices"], parts["bias_values"]
        whole = not is_float(parts["bias_size"].dtype) and not is_float(indices.dtype)
        size = [int(n) for n in parts["bias_size"].numpy().reshape(-1)] if whole else []
        fits = (
            whole
            and len(indices.shape) == 2
            and indices.shape == (len(size), amounts.size)
            and len(size) in (2, 4)
            and (size[0], math.prod(size[1:])) == product.flat_shape
        )
        if not fits:
            raise ShapeError(
                "the sparse part does not fit its low-rank part",
                module=what,
                expected=f"a size of {list(product.shape)}",
                found=f"size {size}, indices {list(indices.shape)}, values {list(amounts.shape)}",
            )
        return cls(product, dict(parts), product.shape, scale)

    @property
    def dim(self) -> int:
        return self.product.rank

    @property
    def rank(self) -> int | None:
        return None

    @property
    def carriers(self) -> tuple[str, ...]:
        return ("up", "bias_values")

    def _entries(self, dtype: str) -> tuple[Array, Array, Array]:
        """Return rows, columns and values of S, flattened to two axes."""
        import numpy as np

        size = tuple(int(n) for n in self.parts["bias_size"].numpy().reshape(-1))
        indices = self.parts["bias_indices"].numpy().astype("int64")
        try:
            flat = np.ravel_multi_index(tuple(indices), size)
        except ValueError as error:
            raise ShapeError(
                "the sparse part has entries outside of the weight", found=str(error)
            ) from None
        rows, columns = np.divmod(flat, math.prod(size[1:]))
        return rows, columns, times(values(self.parts["bias_values"], dtype), self.factor)

    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        import numpy as np

        total = times(self.product.dense(dtype=dtype), self.factor).reshape(self.flat_shape)
        rows, columns, amounts = self._entries(dtype)
        np.add.at(total, (rows, columns), amounts)
        return total.reshape(self.shape)

    def stored(self) -> Mapping[str, Tensor]:
        return {**self.product.stored(), **self.parts}

    def rows(self, ranges: Sequence[tuple[int, int]]) -> SparseSum:
        import numpy as np

        indices = self.parts["bias_indices"].numpy()
        amounts = self.parts["bias_values"].numpy().reshape(-1)
        size = self.parts["bias_size"].numpy().copy()
        found, height = [], 0
        for start, stop in ranges:
            here = (indices[0] >= start) & (indices[0] < stop)
            moved = indices[:, here].copy()
            moved[0] = moved[0] - start + height
            found.append((moved, amounts[here]))
            height += stop - start
        size.reshape(-1)[0] = height
        product = self.product.rows(ranges)
        parts = {
            "bias_indices": ArrayTensor(np.concatenate([i for i, _ in found], axis=1)),
            "bias_values": ArrayTensor(np.concatenate([a for _, a in found])),
            "bias_size": ArrayTensor(size),
        }
        return replace(self, product=product, parts=parts, shape=product.shape)

    def row_adder(self, dtype: str = "float32", read: ReadRows | None = None) -> AddRows:
        import numpy as np

        product = self.product.scaled(self.factor).row_adder(dtype)
        rows, columns, amounts = self._entries(dtype)

        def add(start: int, stop: int, base: Any, out: Any, fresh: bool) -> None:
            product(start, stop, base, out, fresh)
            here = (rows >= start) & (rows < stop)
            np.add.at(out, (rows[here] - start, columns[here]), amounts[here])

        return add


_ROLES = ("bias_indices", "bias_values", "bias_size")


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(*_ROLES)
    beside = stored.only("up", "down", "mid")
    product = make_weight(stored._replace(tensors=beside, scale=Scale))
    if len(parts) < 3 or product is None or not isinstance(product.delta, Factored):
        return None
    delta = SparseSum.of(product.delta, parts, stored.scale(), stored.module)
    return MadeDelta(delta, (*product.roles, *parts))


KINDS = (
    Kind(
        "sparse-bias",
        roles=_ROLES,
        make=_make,
        suffixes={"lycoris": {role: (f".{role}",) for role in _ROLES}},
        integers=("bias_indices", "bias_size"),
        wraps=True,
        compared="formula, LyCORIS",
    ),
)
