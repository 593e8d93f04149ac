"""Deltas that depend on the weight they change."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from loramerge.adapter.delta import AddRows, Content, Delta, Facts, ReadRows
from loramerge.adapter.floats import put
from loramerge.adapter.kinds.full import Full
from loramerge.errors import AdapterError, Setting, ShapeError
from loramerge.files.tensors import Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["ChangeRows", "Dependent", "as_difference"]


# (start, stop, base rows) → rows of ΔW, flattened to `(rows, in·kh·kw)`.
ChangeRows = Callable[[int, int, Any], Any]


def as_difference(tensor: Tensor) -> Delta:
    """Return a tensor as a delta that needs no base, to be compared with another."""
    return Full.of(tensor, "diff")


class Dependent(Delta):
    """A delta that is a function of the base: a final class adds its fields and `changer`."""

    needs_base: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(weighs=False)

    weight: float

    def content(self) -> Content:
        return Content(
            (self.weight, *self.numbers), tuple(map(as_difference, self.stored().values()))
        )

    @property
    def numbers(self) -> tuple[float, ...]:
        """Numbers beside the weight that ΔW depends on."""
        return ()

    @abstractmethod
    def changer(self, dtype: str, read: ReadRows) -> ChangeRows:
        """Return the function that gives rows of ΔW for rows of the base.

        Args:
            read: gives any rows of the base, for kinds whose rows depend on others.
        """

    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        if base is None:
            raise AdapterError(
                f"the change of a {self.kind} delta depends on the base",
                hint=("give the base it is for: ", Setting("base")),
            )
        if not self.fits(base.shape):
            raise ShapeError(
                f"the base does not have the shape of this {self.kind} delta",
                expected=list(self.shape),
                found=list(base.shape),
            )
        flat = base.reshape(base.shape[0], -1).astype(dtype)
        rows: Array = self.changer(dtype, lambda start, stop: flat[start:stop])(0, len(flat), flat)
        return rows.reshape(base.shape)

    def row_adder(self, dtype: str = "float32", read: ReadRows | None = None) -> AddRows:
        if read is None:

            def read(start: int, stop: int) -> Any:
                raise AdapterError(f"a {self.kind} delta needs other rows of the base than its own")

        change = self.changer(dtype, read)

        def add(start: int, stop: int, base: Any, out: Any, fresh: bool) -> None:
            put(change(start, stop, base), out, fresh)

        return add

    def require_whole(self) -> None:
        """Refuse to store a delta that no file can express.

        Raises:
            AdapterError: at a weight other than 1.
        """
        if self.weight != 1.0:
            raise AdapterError(
                f"a {self.kind} delta cannot be stored at a weight other than 1",
                found=self.weight,
                hint=(
                    "give its base (",
                    Setting("base"),
                    "), which turns it into a full difference",
                ),
            )
