"""LoHa: ΔW as the element-wise product of two low-rank matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import AddRows, Facts, ReadRows
from loramerge.adapter.floats import put, times, values
from loramerge.adapter.kinds.bases.scale import Scale
from loramerge.adapter.kinds.bases.scaled import Scaled
from loramerge.adapter.kinds.bases.shapes import kernel_of
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.errors import NotLowRank, ShapeError
from loramerge.files.tensors import Tensor
from loramerge.files.views import columns_of, rows_of

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "LoHa"]


_NEEDS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_CORES = ("hada_t1", "hada_t2")


@final
@dataclass(frozen=True, eq=False)
class LoHa(Scaled):
    """`ΔW = scale · (w1_a @ w1_b) ⊙ (w2_a @ w2_b)` (FedPara, Hyeon-Woo et al. 2022; LyCORIS).

    Args:
        parts: by role. Plain: `hada_w?_a (out, r)`, `hada_w?_b (r, in·kh·kw)`; or as OneTrainer
            stores convolutions, `(out, r, 1, 1)` and `(r, in, kh, kw)`. With cores `hada_t? (r, r, kh,
            kw)` the other two are `(r, out)` and `(r, in)`, and each half is
            `W[o,i,h,w] = Σ_pq t[p,q,h,w] a[p,o] b[q,i]`.

    The low-rank form is exact: up is the face-splitting product of the left factors (row-wise
    Kronecker), down the Khatri–Rao product of the right ones, so the rank is at most r1·r2.
    """

    parts: Mapping[str, Tensor]
    shape: tuple[int, ...]
    scale: Scale = Scale()

    kind: ClassVar[str] = "loha"
    facts: ClassVar[Facts] = Facts(compact=True, magnitudes=True, peft_type="LOHA")

    @classmethod
    def of(
        cls,
        parts: Mapping[str, Tensor],
        scale: Scale = Scale(),
        like: tuple[int, ...] | None = None,
        what: str = "",
    ) -> LoHa:
        """Make the delta of stored factors, checking that they fit.

        Args:
            like: shape of the module in the family, for kernels that the factors do not show.

        Raises:
            ShapeError: if they do not.
        """
        halves = [_shape(parts, half) for half in "12"]
        empty = not all(tensor.size for tensor in parts.values())
        if empty or halves[0] is None or halves[0] != halves[1]:
            raise ShapeError(
                "the factors of a LoHa do not fit together",
                module=what,
                expected="w1_a (out, r), w1_b (r, in) and the same for w2, "
                "(out, r, 1, 1) and (r, in, kh, kw), or (r, out), (r, in) "
                "with cores t1, t2 (r, r, kh, kw)",
                found=", ".join(f"{role} {list(t.shape)}" for role, t in parts.items()),
            )
        return cls(dict(parts), kernel_of(halves[0], like), scale)

    @property
    def dim(self) -> int:
        return self.parts["hada_w1_b"].shape[0]

    @property
    def rank(self) -> int | None:
        rank = self.dim * self.parts["hada_w2_b"].shape[0]
        return rank if rank < min(self.flat_shape) else None

    @property
    def form(self) -> str:
        if "hada_t1" in self.parts:
            return f"{self.kind} with cores"
        kernels = any(len(self.parts[role].shape) > 2 for role in _NEEDS)
        return f"{self.kind} with kernels" if kernels else self.kind

    @property
    def hides_kernel(self) -> bool:
        """True if the factors fit a linear layer as well as any flattened kernel."""
        return "hada_t1" not in self.parts and len(self.parts["hada_w1_b"].shape) == 2

    @property
    def carriers(self) -> tuple[str, ...]:
        return ("hada_w1_a",)

    def _half(self, half: str, dtype: str) -> tuple[Array, Array]:
        """Return one of the two matrices as `(out, r)` and `(r, in·kh·kw)`."""
        import numpy as np

        a, b = (values(self.parts[f"hada_w{half}_{side}"], dtype) for side in "ab")
        core = self.parts.get(f"hada_t{half}")
        if core is None:
            return a.reshape(len(a), -1), b.reshape(len(b), -1)
        joined = np.einsum("pq...,qi->pi...", values(core, dtype), b, optimize=True)
        return a.T, joined.reshape(len(joined), -1)

    def factors(self, dtype: str = "float32") -> tuple[Array, Array]:
        rank = self.rank
        if rank is None:
            raise NotLowRank("the exact low-rank form of this LoHa is as large as ΔW itself")
        (a1, b1), (a2, b2) = self._half("1", dtype), self._half("2", dtype)
        up = (a1[:, :, None] * a2[:, None, :]).reshape(len(a1), rank)
        return times(up, self.factor), (b1[:, None, :] * b2[None, :, :]).reshape(rank, -1)

    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        (a1, b1), (a2, b2) = self._half("1", dtype), self._half("2", dtype)
        return times((a1 @ b1) * (a2 @ b2), self.factor).reshape(self.shape)

    def stored(self) -> Mapping[str, Tensor]:
        return self.parts

    def rows(self, ranges: Sequence[tuple[int, int]]) -> LoHa:
        """Return a LoHa of the same rank: rows of a product of elements are the products of rows."""
        left = {
            role: (columns_of if f"hada_t{role[6]}" in self.parts else rows_of)(tensor, ranges)
            for role, tensor in self.parts.items()
            if role in ("hada_w1_a", "hada_w2_a")
        }
        height = sum(stop - start for start, stop in ranges)
        return replace(self, parts={**self.parts, **left}, shape=(height, *self.shape[1:]))

    def row_adder(self, dtype: str = "float32", read: ReadRows | None = None) -> AddRows:
        (a1, b1), (a2, b2) = self._half("1", dtype), self._half("2", dtype)
        a1 = times(a1, self.factor)

        def add(start: int, stop: int, base: Any, out: Any, fresh: bool) -> None:
            put((a1[start:stop] @ b1) * (a2[start:stop] @ b2), out, fresh)

        return add


def _shape(parts: Mapping[str, Tensor], half: str) -> tuple[int, ...] | None:
    """Return the shape of one of the two matrices, None if its factors do not fit."""
    a, b = parts[f"hada_w{half}_a"].shape, parts[f"hada_w{half}_b"].shape
    core = parts.get(f"hada_t{half}")
    if len(a) < 2 or len(b) < 2 or math.prod(a[2:]) != 1 or (core is not None and len(a) > 2):
        return None
    if core is None:
        return (
            (a[0], *b[1:]) if a[1] == b[0] and f"hada_t{'21'[int(half) - 1]}" not in parts else None
        )
    if len(b) != 2 or core.shape[:2] != (a[0], b[0]) or math.prod(core.shape) == 0:
        return None
    return (a[1], b[1], *core.shape[2:])


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(*_ROLES)
    if not parts.keys() >= set(_NEEDS):
        return None
    delta = LoHa.of(parts, stored.scale(), stored.like, stored.module)
    return MadeDelta(delta, (*parts, "alpha", "scale"), delta.hides_kernel)


_ROLES = (*_CORES, *_NEEDS)
_SUFFIXES = {role: (f".{role}",) for role in _ROLES}

KINDS = (
    Kind(
        "loha",
        roles=_ROLES,
        make=_make,
        suffixes={"lycoris": _SUFFIXES, "peft": _SUFFIXES},
        always=("hada_w1_a",),
        compared="formula, LyCORIS, PEFT",
    ),
)
