"""HRA: the weight times reflections of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Facts, ReadRows
from loramerge.adapter.floats import values
from loramerge.adapter.kinds.bases.computed import OfBase, flat, require, suffixes
from loramerge.adapter.kinds.bases.dependent import ChangeRows
from loramerge.adapter.kinds.bases.rotation import input_shape
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.files.tensors import Tensor
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["HRA", "KINDS"]

_ROLE = "hra_u"


@final
@record(eq=False)
class HRA(OfBase):
    """`W' = W Π (I − 2 ûᵢ ûᵢᵀ)` (Yuan et al. 2024; PEFT).

    Args:
        parts: `u (in·kh·kw, r)`.
        orthogonal: whether the columns are made orthogonal first, one after the other (`apply_GS`).
    """

    parts: Mapping[str, Tensor]
    orthogonal: bool
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "hra"
    facts: ClassVar[Facts] = Facts(weighs=False, peft_type="HRA")

    @property
    def numbers(self) -> tuple[float, ...]:
        return (float(self.orthogonal),)

    def fits(self, shape: tuple[int, ...]) -> bool:
        return flat(shape)[1] == self.parts[_ROLE].shape[0]

    def _directions(self, dtype: str) -> Array:
        """Return the unit vectors, one per row."""
        import numpy as np

        found = values(self.parts[_ROLE], "float64").T.copy()
        for i, vector in enumerate(found):
            if self.orthogonal:
                for before in found[:i]:
                    vector -= (before @ vector) * before
            vector /= np.linalg.norm(vector)
        return found.astype(dtype)

    def changer(self, dtype: str, read: ReadRows) -> ChangeRows:
        directions = self._directions(dtype)

        def change(start: int, stop: int, base: Any) -> Any:
            total = 0 * base
            for vector in directions:
                total -= ((2.0 * (base + total)) @ vector)[:, None] * vector
            return total if self.weight == 1.0 else self.weight * total

        return change


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(_ROLE)
    shape = parts[_ROLE].shape
    require(stored, len(shape) == 2 and min(shape) > 0, "HRA", "u (in, r)")
    orthogonal = bool(stored.config.get("apply_GS"))
    return MadeDelta(HRA(parts, orthogonal, input_shape(shape[0], 0, stored.like)), (_ROLE,))


KINDS = (
    Kind(
        "hra",
        roles=(_ROLE,),
        make=_make,
        suffixes={"peft": suffixes(_ROLE)},
        always=(_ROLE,),
        compared="formula, PEFT",
    ),
)
