"""Kinds that are recognised and listed, but not computed with yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import AddRows, Delta, ReadRows
from loramerge.errors import UnsupportedKind
from loramerge.files.tensors import Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["Foreign"]


@final
@dataclass(frozen=True, eq=False)
class Foreign(Delta):
    """The tensors of a kind that is not computed with; everything but listing them is an error."""

    roles: Mapping[str, Tensor]
    kind: str
    shape: tuple[int, ...] = (0, 0)

    computable: ClassVar[bool] = False

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

    def encoded(self, dtype: str | None, *, alpha: bool) -> dict[str, Tensor]:
        if dtype is not None:
            raise self._refuse()
        return dict(self.roles)

    def row_adder(self, dtype: str = "float32", read: ReadRows | None = None) -> AddRows:
        raise self._refuse()
