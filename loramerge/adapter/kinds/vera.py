"""VeRA and PVeRA: random factors that all modules share, and vectors of each module's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from loramerge.adapter.delta import Facts
from loramerge.adapter.floats import values
from loramerge.adapter.kinds.bases.computed import ComputedPair, flat, require, suffixes
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.errors import UnsupportedKind
from loramerge.files.tensors import Tensor
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "VeRA"]


@final
@record(eq=False)
class VeRA(ComputedPair):
    """`ΔW = (b ⊙ B) (d ⊙ A)` (Kopiczko et al. 2024; PEFT).

    Args:
        parts: `lambda_b (out,)`, `lambda_d (r,)` and, shared by all modules, `A (r, ≥ in)` and
            `B (≥ out, r)`, of which a module takes the first columns and rows. Of PVeRA `lambda_d` and A
            have 2r rows: means, which are what is merged, and variances.
        prefix: `vera` or `pvera`, as the roles begin.
    """

    parts: Mapping[str, Tensor]
    prefix: str
    shape: tuple[int, ...]
    weight: float = 1.0

    @property
    def kind(self) -> str:
        return self.prefix

    @property
    def facts(self) -> Facts:
        return Facts(compact=True, weighs=False, peft_type=self.prefix.upper())

    def _part(self, name: str) -> Tensor:
        return self.parts[f"{self.prefix}_{name}"]

    @property
    def dim(self) -> int:
        return self._part("B").shape[1]

    def may_fit(self, shape: tuple[int, ...]) -> bool:
        rows, columns = flat(shape)
        return rows == self._part("lambda_b").size and columns <= self._part("A").shape[1]

    def pair_of(self, dtype: str) -> tuple[Array, Array]:
        r, (rows, columns) = self.dim, self.flat_shape
        b, d = (values(self._part(f"lambda_{name}"), dtype) for name in "bd")
        up, down = values(self._part("B"), dtype)[:rows], values(self._part("A"), dtype)
        return b[:, None] * up, d[:r, None] * down[:r, :columns]


def _maker(prefix: str, doubled: int) -> Kind:
    own = (f"{prefix}_lambda_b", f"{prefix}_lambda_d")
    shared = (f"{prefix}_A", f"{prefix}_B")

    def make(stored: Stored) -> MadeDelta | None:
        parts = stored.only(*own, *shared)
        if not parts.keys() >= set(own):
            return None
        if len(parts) < 4:
            raise UnsupportedKind(
                f"the file lacks {shared[0]} and {shared[1]}, which PEFT draws again for the largest of "
                "all layers",
                module=stored.module,
                hint="save it in PEFT with save_projection=True",
            )
        b, d, down, up = (
            tensor.shape
            for tensor in (*(parts[r] for r in own), parts[shared[0]], parts[shared[1]])
        )
        fits = len(b) == len(d) == 1 and len(down) == len(up) == 2 and up[0] >= b[0] > 0
        require(
            stored,
            fits and down[0] == d[0] == doubled * up[1],
            prefix,
            "lambda_b (out), lambda_d (r), A (r, ≥ in), B (≥ out, r)",
        )
        delta = VeRA(parts, prefix, (b[0], 0))
        return MadeDelta(delta.of_module(stored.like), tuple(parts))

    return Kind(
        prefix,
        roles=(*own, *shared),
        make=make,
        suffixes={"peft": suffixes(*own, *shared)},
        always=(own[0],),
        compared="formula, PEFT",
    )


KINDS = (_maker("vera", 1), _maker("pvera", 2))
