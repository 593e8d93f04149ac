"""The kind `oft_diag` of early LyCORIS, which is listed but not computed with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import AddRows, AlphaPlace, Delta, Facts, ReadRows
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.errors import UnsupportedKind
from loramerge.files.tensors import Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "Foreign"]


@final
@dataclass(frozen=True, eq=False)
class Foreign(Delta):
    """The tensors of a kind that is not computed with; everything but listing them is an error."""

    roles: Mapping[str, Tensor]
    kind: str
    shape: tuple[int, ...] = (0, 0)

    facts: ClassVar[Facts] = Facts(computable=False)

    def _refuse(self) -> UnsupportedKind:
        return UnsupportedKind(
            f"this version reads {self.kind} adapters but cannot compute with them",
            hint="inspect works; convert it with the program that made it",
        )

    def factors(self, dtype: str = "float32") -> tuple[Array, Array]:
        raise self._refuse()

    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        raise self._refuse()

    def scaled(self, weight: float) -> Foreign:
        if weight == 1.0:
            return self
        raise self._refuse()

    def splits_exactly(self, bounds: Sequence[int]) -> bool:
        return False

    def rows(self, ranges: Sequence[tuple[int, int]]) -> Foreign:
        """Return self where only the order of rows changes: the tensors stay as they are stored."""
        if sum(stop - start for start, stop in ranges) == self.shape[0]:
            return self
        raise self._refuse()

    def stored(self) -> Mapping[str, Tensor]:
        return self.roles

    def encoded(self, dtype: str | None, *, alpha: AlphaPlace) -> dict[str, Tensor]:
        if dtype is not None:
            raise self._refuse()
        return dict(self.roles)

    def row_adder(self, dtype: str = "float32", read: ReadRows | None = None) -> AddRows:
        raise self._refuse()


_OF_BIAS = ("diff_b", "b_norm", "set_bias")


def _make(stored: Stored) -> MadeDelta | None:
    tensors = {role: t for role, t in stored.tensors.items() if role not in _OF_BIAS}
    return MadeDelta(Foreign(tensors, "oft-diag"), tuple(tensors))


# what it meant changed between versions of LyCORIS, and none reads it today
KINDS = (
    Kind(
        "oft-diag",
        roles=("oft_diag",),
        make=_make,
        suffixes={"lycoris": {"oft_diag": (".oft_diag",)}},
        wraps=True,
        compared="",
    ),
)
