"""OSF: new values for the small directions of the weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Facts, ReadRows
from loramerge.adapter.floats import times, values
from loramerge.adapter.kinds.bases.computed import OfBase, require
from loramerge.adapter.kinds.bases.dependent import ChangeRows
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.files.tensors import Tensor
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "OSF"]

_ROLES = {"osf_U": "U_low", "osf_S": "S_low", "osf_V": "V_low"}


@final
@record(eq=False)
class OSF(OfBase):
    """`ΔW = U diag(s) V − (W − W_k)`, W_k the best approximation of rank k = min(out, in) − n (PEFT).

    Args:
        parts: `U (out, n)`, `S (n,)`, `V (n, in)`.

    The whole weight is held and decomposed.
    """

    parts: Mapping[str, Tensor]
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "osf"
    facts: ClassVar[Facts] = Facts(weighs=False, peft_type="OSF")

    def changer(self, dtype: str, read: ReadRows) -> ChangeRows:
        whole: list[Any] = []

        def change(start: int, stop: int, base: Any) -> Any:
            if not whole:
                whole.append(times(self._changed(read(0, self.shape[0]), dtype), self.weight))
            return whole[0][start:stop]

        return change

    def _changed(self, base: Any, dtype: str) -> Any:
        import numpy as np

        u, s, v = (values(self.parts[role], dtype) for role in _ROLES)
        left, sizes, right = np.linalg.svd(base.astype("float64"), full_matrices=False)
        kept = len(sizes) - len(s)
        before = (left[:, kept:] * sizes[kept:]) @ right[kept:]
        return (u * s) @ v - before.astype(dtype)


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(*_ROLES)
    if len(parts) < 3:
        return None
    u, s, v = (tensor.shape for tensor in parts.values())
    fits = (len(u), len(s), len(v)) == (2, 1, 2) and u[1] == s[0] == v[0] <= min(u[0], v[1])
    require(stored, fits and s[0] > 0, "OSF", "U_low (out, n), S_low (n), V_low (n, in)")
    return MadeDelta(OSF(parts, (u[0], v[1])), tuple(parts))


KINDS = (
    Kind(
        "osf",
        roles=tuple(_ROLES),
        make=_make,
        suffixes={
            "peft": {
                role: (f".osf_svd_params.{word}", f".osf_svd_params.default.{word}")
                for role, word in _ROLES.items()
            }
        },
        always=("osf_U",),
        compared="formula, PEFT",
    ),
)
