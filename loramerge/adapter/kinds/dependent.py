"""What kinds whose ΔW depends on the weight they change have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from loramerge.adapter.delta import AddRows, Delta, ReadRows, put
from loramerge.adapter.kinds.dense import Full
from loramerge.errors import AdapterError, ShapeError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["ChangeRows", "Dependent", "shape_like"]

# (start, stop, base rows) → rows of ΔW, flattened to `(rows, in·kh·kw)`.
ChangeRows = Callable[[int, int, Any], Any]


class Dependent(Delta):
    """A delta that is a function of the base: a final class adds its fields and `changer`."""

    needs_base: ClassVar[bool] = True
    weighs: ClassVar[bool] = False

    weight: float

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.weight,)

    def free_parts(self) -> tuple[Delta, ...]:
        return tuple(Full.of(tensor, "diff") for tensor in self.stored().values())

    @abstractmethod
    def changer(self, dtype: str, read: ReadRows) -> ChangeRows:
        """Return the function that gives rows of ΔW for rows of the base.

        Args:
            read: gives any rows of the base, for kinds whose rows depend on others.
        """

    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        if base is None:
            raise AdapterError(
                f"what a {self.kind} delta changes depends on the base",
                hint="give the base it is for: --base B",
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
        """Refuse to store what no file can say.

        Raises:
            AdapterError: at a weight other than 1.
        """
        if self.weight != 1.0:
            raise AdapterError(
                f"a {self.kind} delta cannot be stored at a weight other than 1",
                found=self.weight,
                hint="give its base (--base B), with which it becomes an ordinary difference",
            )


def shape_like(shape: tuple[int, int], like: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return a shape of which the file tells only some sizes (0 where not), made whole.

    Args:
        like: the module's shape in the family, if that is known; taken where sizes agree.
    """
    if like is None or len(like) < 2:
        return shape
    agree = all(known in (0, there) for known, there in zip(shape, like, strict=False))
    return like if agree else shape
