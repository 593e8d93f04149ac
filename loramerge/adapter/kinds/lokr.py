"""LoKr: ΔW as a Kronecker product."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import AddRows, Delta, Facts, ReadRows
from loramerge.adapter.floats import put, times, values
from loramerge.adapter.kinds.bases.scale import Scale
from loramerge.adapter.kinds.bases.scaled import Scaled
from loramerge.adapter.kinds.bases.shapes import kernel_of
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.adapter.kinds.full import Full
from loramerge.adapter.kinds.lora import LowRank
from loramerge.errors import NotLowRank, ShapeError
from loramerge.files.tensors import Tensor
from loramerge.files.views import Derived, rows_of

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "LoKr"]


@final
@dataclass(frozen=True, eq=False)
class LoKr(Scaled):
    """`ΔW = scale · kron(w1, w2)` (KronA, Edalati et al. 2022; LyCORIS).

    Args:
        parts: by role. `lokr_w1 (a, c)`, or `lokr_w1_a (a, r)` and `lokr_w1_b (r, c)`;
            `lokr_w2 (b, d[, kh, kw])`, or `lokr_w2_a (b, r)` and `lokr_w2_b (r, d·kh·kw)`, or with a
            core `lokr_t2 (r, r, kh, kw)` `lokr_w2_a (r, b)` and `lokr_w2_b (r, d)`.

    ΔW is `(a·b, c·d[, kh, kw])`. Where neither half is factored there is no rank, and alpha does not
    count (LyCORIS; PEFT divides by the rank of its configuration all the same, which then comes as
    `scale.ratio`). Low-rank forms are exact: `kron(u1 d1, u2 d2) = kron(u1, u2) @ kron(d1, d2)`.
    """

    parts: Mapping[str, Tensor]
    shape: tuple[int, ...]
    scale: Scale = Scale()

    kind: ClassVar[str] = "lokr"
    facts: ClassVar[Facts] = Facts(compact=True, magnitudes=True, peft_type="LOKR")

    @classmethod
    def of(
        cls,
        parts: Mapping[str, Tensor],
        scale: Scale = Scale(),
        like: tuple[int, ...] | None = None,
        what: str = "",
    ) -> LoKr:
        """Make the delta of stored factors, checking that they fit.

        Args:
            like: shape of the module in the family, for kernels that the factors do not show.

        Raises:
            ShapeError: if they do not.
        """
        first, second = _shape(parts, "1"), _shape(parts, "2")
        empty = not all(tensor.size for tensor in parts.values())
        if empty or first is None or second is None or len(first) != 2:
            raise ShapeError(
                "the factors of a LoKr do not fit together",
                module=what,
                expected="w1 or w1_a, w1_b; w2 or w2_a, w2_b, with inner sizes that agree",
                found=", ".join(f"{role} {list(t.shape)}" for role, t in parts.items()),
            )
        shape = (first[0] * second[0], first[1] * second[1], *second[2:])
        return cls(dict(parts), kernel_of(shape, like), scale)

    @property
    def dim(self) -> int | None:
        inner = self.parts.get("lokr_w1_b") or self.parts.get("lokr_w2_b")
        return None if inner is None else inner.shape[0]

    @property
    def _ranks(self) -> tuple[int, int]:
        """The inner sizes of the low-rank forms of both halves."""
        found = []
        for half in "12":
            b = self.parts.get(f"lokr_w{half}_b")
            if b is None:
                rows, *rest = self.parts[f"lokr_w{half}"].shape
                found.append(min(rows, math.prod(rest)))
            else:
                found.append(b.shape[0])
        return found[0], found[1]

    @property
    def rank(self) -> int | None:
        rank, least = math.prod(self._ranks), min(self.flat_shape)
        return rank if 2 * rank < (least if self.dim is None else 2 * least) else None

    @property
    def form(self) -> str:
        return "lokr with a core" if "lokr_t2" in self.parts else self.kind

    @property
    def hides_kernel(self) -> bool:
        """True if the factors fit a linear layer as well as any flattened kernel."""
        flat = self.parts.get("lokr_w2_b")
        return flat is not None and "lokr_t2" not in self.parts and len(flat.shape) == 2

    @property
    def carriers(self) -> tuple[str, ...]:
        return ("lokr_w1",) if "lokr_w1" in self.parts else ("lokr_w1_a",)

    def _half(self, half: str, dtype: str) -> tuple[Array, Array]:
        """Return one half as a product of exact factors; one of them is I where it is not factored."""
        import numpy as np

        whole = self.parts.get(f"lokr_w{half}")
        if whole is not None:
            matrix = values(whole, dtype).reshape(whole.shape[0], -1)
            rows, columns = matrix.shape
            eye = np.eye(min(rows, columns), dtype=dtype)
            return (eye, matrix) if rows <= columns else (matrix, eye)
        a, b = (values(self.parts[f"lokr_w{half}_{side}"], dtype) for side in "ab")
        core = self.parts.get(f"lokr_t{half}")
        if core is None:
            return a, b.reshape(len(b), -1)
        joined = np.einsum("pq...,qi->pi...", values(core, dtype), b, optimize=True)
        return a.T, joined.reshape(len(joined), -1)

    def _halves(self, dtype: str) -> tuple[Array, Array]:
        """Return w1 `(a, c)` with the scale, and w2 `(b, d·kh·kw)`."""
        (u1, d1), (u2, d2) = self._half("1", dtype), self._half("2", dtype)
        return times(u1 @ d1, self.factor), u2 @ d2

    def factors(self, dtype: str = "float32") -> tuple[Array, Array]:
        import numpy as np

        if self.rank is None:
            raise NotLowRank("this LoKr has no low-rank form that is smaller than ΔW")
        (u1, d1), (u2, d2) = self._half("1", dtype), self._half("2", dtype)
        return np.kron(times(u1, self.factor), u2), np.kron(d1, d2)

    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        import numpy as np

        return np.kron(*self._halves(dtype)).reshape(self.shape)

    def stored(self) -> Mapping[str, Tensor]:
        return self.parts

    def rows(self, ranges: Sequence[tuple[int, int]]) -> Delta:
        """Return a LoKr where only whole blocks are taken; else the smaller of the exact low-rank
        form and the plain difference."""
        (role,) = self.carriers
        blocks, (height, columns) = self.parts[role].shape[0], self.flat_shape
        block = height // blocks
        count = sum(stop - start for start, stop in ranges)
        shape = (count, *self.shape[1:])
        if not any(edge % block for pair in ranges for edge in pair):
            of_blocks = [(start // block, stop // block) for start, stop in ranges]
            parts = {**self.parts, role: rows_of(self.parts[role], of_blocks)}
            return replace(self, parts=parts, shape=shape)
        if self.rank is not None and self.rank * (count + columns) < count * columns:
            up, down = self.factors("float64")
            return LowRank.from_arrays(_taken(up, ranges), down, shape)

        def make() -> Array:
            return _taken(self.dense().reshape(self.flat_shape), ranges)

        return Full.of(Derived("F64", shape, make), "diff")

    def row_adder(self, dtype: str = "float32", read: ReadRows | None = None) -> AddRows:
        w1, w2 = self._halves(dtype)
        height, columns = len(w2), w1.shape[1] * w2.shape[1]

        def add(start: int, stop: int, base: Any, out: Any, fresh: bool) -> None:
            row = start
            while row < stop:
                block, first = divmod(row, height)
                last = min(height, first + stop - row)
                product = w1[block][None, :, None] * w2[first:last, None, :]
                rows = slice(row - start, row - start + last - first)
                put(product.reshape(last - first, columns), out[rows], fresh)
                row += last - first

        return add


def _taken(rows: Array, ranges: Sequence[tuple[int, int]]) -> Array:
    import numpy as np

    return np.concatenate([rows[start:stop] for start, stop in ranges])


def _shape(parts: Mapping[str, Tensor], half: str) -> tuple[int, ...] | None:
    """Return the shape of one half, None if its factors do not fit."""
    whole = parts.get(f"lokr_w{half}")
    a, b = parts.get(f"lokr_w{half}_a"), parts.get(f"lokr_w{half}_b")
    core = parts.get(f"lokr_t{half}")
    if whole is not None:
        alone = a is None and b is None and core is None
        return whole.shape if alone and len(whole.shape) >= 2 else None
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) < 2:
        return None
    if core is None:
        return (a.shape[0], *b.shape[1:]) if a.shape[1] == b.shape[0] else None
    if len(b.shape) != 2 or core.shape[:2] != (a.shape[0], b.shape[0]):
        return None
    return (a.shape[1], b.shape[1], *core.shape[2:])


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(*_ROLES)
    for half in "12":
        pair = {f"lokr_w{half}_a", f"lokr_w{half}_b"}
        if f"lokr_w{half}" not in parts and not pair <= parts.keys():
            return None
    delta = LoKr.of(parts, stored.scale(), stored.like, stored.module)
    return MadeDelta(delta, (*parts, "alpha", "scale"), delta.hides_kernel)


_ROLES = (
    "lokr_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
)  # fmt: skip
_SUFFIXES = {role: (f".{role}",) for role in _ROLES}

KINDS = (
    Kind(
        "lokr",
        roles=_ROLES,
        make=_make,
        suffixes={"lycoris": _SUFFIXES, "peft": _SUFFIXES},
        always=("lokr_w1", "lokr_w1_a"),
        compared="formula, LyCORIS, PEFT",
    ),
)
