"""What stands beside low-rank factors: a sparse rest, a bias of the second factor; and embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import AddRows, Delta, ReadRows, put, times, values
from loramerge.adapter.kinds.dense import Full
from loramerge.adapter.kinds.low_rank import Factored, Scale, Scaled
from loramerge.errors import ShapeError
from loramerge.files.dtypes import is_float
from loramerge.files.tensors import ArrayTensor, Tensor
from loramerge.files.views import rows_of

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["AddedBias", "Embedding", "SparseSum"]


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

    is_product: ClassVar[bool] = True
    kind: ClassVar[str] = "sparse-bias"  # type: ignore[misc]

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


@final
@dataclass(frozen=True, eq=False)
class AddedBias(Scaled):
    """`Δb = scale · value`: the bias of PEFT's `lora_B` (`lora_bias`), with the factors' scale.

    Args:
        value: `(out,)`.
        inner: rank of the factors it stands beside.
    """

    value: Tensor
    shape: tuple[int, ...]
    scale: Scale
    inner: int

    kind: ClassVar[str] = "bias"  # type: ignore[misc]
    peft_type: ClassVar[str | None] = "LORA"

    @classmethod
    def of(cls, value: Tensor, scale: Scale, rank: int) -> AddedBias:
        """Make the delta of a stored bias."""
        return cls(value, value.shape, scale, rank)

    @property
    def core(self) -> Scaled | None:
        return None

    @property
    def scale_dim(self) -> int:
        return self.inner

    @property
    def alpha(self) -> float | None:
        return None  # the factors state it

    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        return times(values(self.value, dtype), self.factor)

    def stored(self) -> Mapping[str, Tensor]:
        return {"up_bias": self.value}

    @property
    def carriers(self) -> tuple[str, ...]:
        return ("up_bias",)

    def encoded(self, dtype: str | None, *, alpha: bool) -> dict[str, Tensor]:
        # where alpha is kept, its sign goes into the factors, see `Scaled.bare`
        factor = math.copysign(1.0, self.factor) if alpha else self.factor
        return self._written(factor, dtype)

    def rows(self, ranges: Sequence[tuple[int, int]]) -> AddedBias:
        value = rows_of(self.value, ranges)
        return replace(self, value=value, shape=value.shape)

    def respelled(self, roles: Set[str], beside: Delta | None = None) -> Delta:
        if "up_bias" in roles and isinstance(beside, Scaled) and beside.factor == self.factor:
            return self
        return Full.of(ArrayTensor(self.dense(dtype="float64")), "diff_b")

    def row_adder(self, dtype: str = "float32", read: ReadRows | None = None) -> AddRows:
        rows = self.dense(dtype=dtype).reshape(self.flat_shape)

        def add(start: int, stop: int, base: Any, out: Any, fresh: bool) -> None:
            put(rows[start:stop], out, fresh)

        return add


@final
@dataclass(frozen=True, eq=False)
class Embedding(Scaled):
    """`ΔW = scale · (up @ down)ᵀ`: LoRA of an embedding `(tokens, dim)`, as PEFT stores it.

    Args:
        down: `lora_embedding_A (r, tokens)`; up: `lora_embedding_B (dim, r)`.
    """

    down: Tensor
    up: Tensor
    shape: tuple[int, ...]
    scale: Scale = Scale()

    kind: ClassVar[str] = "lora-embedding"  # type: ignore[misc]
    peft_type: ClassVar[str | None] = "LORA"

    @classmethod
    def of(cls, down: Tensor, up: Tensor, scale: Scale = Scale(), what: str = "") -> Embedding:
        """Make the delta of stored factors, checking that they fit.

        Raises:
            ShapeError: if the ranks differ.
        """
        if len(up.shape) != 2 or len(down.shape) != 2 or up.shape[1] != down.shape[0]:
            raise ShapeError(
                "the factors of an embedding do not fit together",
                module=what,
                expected="lora_embedding_A (r, tokens) and lora_embedding_B (dim, r)",
                found=f"A {list(down.shape)} and B {list(up.shape)}",
            )
        return cls(down, up, (down.shape[1], up.shape[0]), scale)

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def carriers(self) -> tuple[str, ...]:
        return ("embedding_up",)

    def factors(self, dtype: str = "float32") -> tuple[Array, Array]:
        return times(values(self.down, dtype).T, self.factor), values(self.up, dtype).T

    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        up, down = self.factors(dtype)
        return up @ down

    def stored(self) -> Mapping[str, Tensor]:
        return {"embedding_down": self.down, "embedding_up": self.up}

    def row_adder(self, dtype: str = "float32", read: ReadRows | None = None) -> AddRows:
        up, down = self.factors(dtype)

        def add(start: int, stop: int, base: Any, out: Any, fresh: bool) -> None:
            put(up[start:stop] @ down, out, fresh)

        return add
