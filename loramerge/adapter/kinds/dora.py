"""DoRA: a change of direction by low-rank factors, and a magnitude of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from loramerge.adapter.delta import AlphaPlace, Content, Delta, Facts, ReadRows
from loramerge.adapter.floats import cast, values
from loramerge.adapter.kinds import make_weight
from loramerge.adapter.kinds.bases.dependent import ChangeRows, Dependent, as_difference
from loramerge.adapter.kinds.bases.scaled import Scaled
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.errors import ShapeError, UnsupportedKind
from loramerge.files.dtypes import is_float
from loramerge.files.tensors import Tensor
from loramerge.files.views import rows_of, stacked

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "DoRA"]

Axis = Literal["out", "in"]

_BLOCK = 1 << 18  # elements of the base at a time in the first pass over it
_FINFO_EPS = 2.0**-23  # LyCORIS adds finfo(float32).eps to the norm, PEFT nothing


@final
@dataclass(frozen=True, eq=False)
class DoRA(Dependent):
    """`ΔW = weight · (m ⊙ V / (‖V‖ + eps) − W)` with `V = W + ΔV` (Liu et al. 2024).

    Norms and magnitudes are of rows (an output and all its inputs) or of columns (an input, over
    all outputs and kernel places). At a weight other than 1 this interpolates W and W' linearly, as
    ComfyUI does; LyCORIS interpolates the factor m / ‖V‖ instead.

    Args:
        inner: ΔV, of any kind that needs no base.
        magnitude: m; its role says who wrote it: `dora_scale` (LyCORIS and others; `(out, 1[, 1, 1])`,
            `(1, in[, 1, 1])` or `(out,)`) or `magnitude` (PEFT, always of outputs: `(out,)`, for
            convolutions `(1, out, 1, 1)`).
        axis: whose magnitudes they are.
    """

    inner: Scaled
    magnitude: Tensor
    role: str
    axis: Axis
    weight: float = 1.0

    kind: ClassVar[str] = "dora"

    @classmethod
    def of(cls, inner: Scaled, magnitude: Tensor, role: str, what: str = "") -> DoRA:
        """Make the delta, telling the axis from the shape of the magnitudes.

        Raises:
            ShapeError: if they are neither of the outputs nor of the inputs.
        """
        shape = magnitude.shape
        axis: Axis = "out"
        if role == "dora_scale" and len(shape) > 1 and shape[0] == 1 and shape[1] != 1:
            axis = "in"
        size = inner.shape[0] if axis == "out" else inner.flat_shape[1]
        whole = magnitude.size == size or (axis == "in" and magnitude.size == inner.shape[1])
        if not whole or math.prod(shape) != max(shape, default=0):
            raise ShapeError(
                "the magnitudes of a DoRA do not fit its factors",
                module=what,
                expected=f"({inner.shape[0]}, 1) of outputs or (1, {inner.shape[1]}) of inputs",
                found=list(shape),
            )
        return cls(inner, magnitude, role, axis)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    @property
    def facts(self) -> Facts:  # type: ignore[override]
        # PEFT knows DoRA only of its LoRA
        held = self.inner.facts.peft_type if self.inner.kind == "lora" else None
        return Facts(weighs=False, peft_type=held)

    @property
    def core(self) -> Scaled:
        return self.inner

    @property
    def alpha(self) -> float | None:
        return self.inner.alpha

    @property
    def form(self) -> str:
        of = f"dora of {self.axis}puts"
        return of if self.inner.kind == "lora" else f"{of} over {self.inner.form}"

    def content(self) -> Content:
        flat = self.magnitude.reshaped((self.magnitude.size,))
        return Content((self.weight, float(self.axis == "in")), (self.inner, as_difference(flat)))

    def scaled(self, weight: float) -> DoRA:
        return replace(self, weight=self.weight * weight)

    def stored(self) -> Mapping[str, Tensor]:
        return {**self.inner.stored(), self.role: self.magnitude}

    def encoded(self, dtype: str | None, *, alpha: AlphaPlace) -> dict[str, Tensor]:
        self.require_whole()
        magnitude = self.magnitude
        if dtype not in (None, magnitude.dtype) and is_float(magnitude.dtype):
            magnitude = cast(values(magnitude, "float64"), str(dtype), self.role)
        return self.inner.encoded(dtype, alpha=alpha) | {self.role: magnitude}

    def conformed(self, shape: tuple[int, ...]) -> Delta:
        inner = self.inner.conformed(shape)
        if not isinstance(inner, Scaled) or inner is self.inner:
            return self
        return replace(self, inner=inner, magnitude=self._spelled(self.role, inner.shape))

    def respelled(self, roles: Set[str], beside: Delta | None = None) -> Delta:
        other = "magnitude" if self.role == "dora_scale" else "dora_scale"
        if self.role in roles or other not in roles or self.axis == "in":
            return self
        return replace(self, role=other, magnitude=self._spelled(other, self.shape))

    def _spelled(self, role: str, shape: tuple[int, ...]) -> Tensor:
        """Return the magnitudes with the axes of a role and a shape."""
        ones = (1,) * (len(shape) - 1)
        if self.axis == "in":
            return self.magnitude.reshaped((1, self.magnitude.size, *ones[1:]))
        if role == "dora_scale":
            return self.magnitude.reshaped((shape[0], *ones))
        return self.magnitude.reshaped((1, shape[0], *ones[1:]) if len(shape) > 2 else (shape[0],))

    def splits_exactly(self, bounds: Sequence[int]) -> bool:
        """Rows have norms of their own, columns are longer than any part of them."""
        return self.axis == "out" and self.inner.splits_exactly(bounds)

    def rows(self, ranges: Sequence[tuple[int, int]]) -> DoRA:
        return self._of_rows(self.inner.rows(ranges), ranges)

    def split(self, bounds: Sequence[int]) -> list[Delta | None]:
        pairs = list(pairwise(bounds))
        # where the factors are zero, the magnitudes are not
        inner = [
            part if part is not None else self.inner.rows((pair,))
            for part, pair in zip(self.inner.split(bounds), pairs, strict=True)
        ]
        return [self._of_rows(part, (pair,)) for part, pair in zip(inner, pairs, strict=True)]

    def _of_rows(self, inner: Delta, ranges: Sequence[tuple[int, int]]) -> DoRA:
        """Return the delta of rows whose factors were cut already."""
        part = inner.shape[0] < self.shape[0]
        if not isinstance(inner, Scaled) or (part and self.axis == "in"):
            super().rows(ranges)  # refuses
        assert isinstance(inner, Scaled)
        if self.axis == "in":
            return replace(self, inner=inner)
        found = rows_of(self.magnitude.reshaped((self.shape[0],)), ranges)
        shape = tuple(
            inner.shape[0] if n == self.magnitude.size else n for n in self.magnitude.shape
        )
        return replace(self, inner=inner, magnitude=found.reshaped(shape))

    def joined(
        self, deltas: Sequence[Delta], fuse: Callable[[Sequence[Delta]], Delta]
    ) -> DoRA | None:
        parts = [delta for delta in deltas if isinstance(delta, DoRA)]
        first = ("out", self.role, self.weight, self.magnitude.dtype)
        if len(parts) < len(deltas) or any(
            (part.axis, part.role, part.weight, part.magnitude.dtype) != first for part in parts
        ):
            return None
        inner = fuse([part.inner for part in parts])
        if not isinstance(inner, Scaled):
            return None
        joined = stacked([part.magnitude.reshaped((part.shape[0],)) for part in parts])
        whole = replace(self, inner=inner, magnitude=joined)
        return replace(whole, magnitude=whole._spelled(self.role, inner.shape))

    def changer(self, dtype: str, read: ReadRows) -> ChangeRows:
        import numpy as np

        add_inner = self.inner.row_adder(dtype)
        m = values(self.magnitude, "float64").reshape(-1)
        eps = _FINFO_EPS if self.role == "dora_scale" else 0.0
        rows, columns = self.inner.flat_shape

        def moved(start: int, stop: int, base: Any) -> tuple[Any, Any]:
            """Return rows of ΔV and of V."""
            step = np.empty_like(base)
            add_inner(start, stop, base, step, True)
            return step, base + step

        def gains(squares: Any) -> Any:
            return m / (np.sqrt(squares) + eps)

        g: Any = None
        if self.axis == "in":
            squares = np.zeros(columns)
            height = max(1, _BLOCK // columns)
            for start in range(0, rows, height):
                stop = min(start + height, rows)
                _, v = moved(start, stop, read(start, stop))
                squares += np.einsum("oi,oi->i", v, v, dtype="float64")
            places = columns // len(m)
            g = gains(squares.reshape(len(m), places).sum(1)).repeat(places)

        def change(start: int, stop: int, base: Any) -> Any:
            step, v = moved(start, stop, base)
            gain = g
            if gain is None:
                squares = np.einsum("oi,oi->o", v, v, dtype="float64")
                gain = (m[start:stop] / (np.sqrt(squares) + eps))[:, None]
            # g V − W, without the difference of two near equals
            step *= (self.weight * gain).astype(dtype)
            step += (self.weight * (gain - 1.0)).astype(dtype) * base
            return step

        return change


_SCALES = ("magnitude", "dora_scale")


def _make(stored: Stored) -> MadeDelta | None:
    if "embedding_up" in stored.tensors:
        raise UnsupportedKind(
            "DoRA of an embedding is not computed",
            module=stored.module,
            hint="merge it in PEFT with merge_and_unload()",
        )
    role = next(iter(stored.only(*_SCALES)))
    rest = {r: tensor for r, tensor in stored.tensors.items() if r not in _SCALES}
    inner = make_weight(stored._replace(tensors=rest))
    if inner is None or not isinstance(inner.delta, Scaled) or not inner.delta.facts.magnitudes:
        return None
    delta = DoRA.of(inner.delta, stored.tensors[role], role, stored.module)
    return MadeDelta(delta, (*inner.roles, role), inner.hides_kernel)


KINDS = (
    Kind(
        "dora",
        roles=_SCALES,
        make=_make,
        suffixes={
            "lycoris": {"dora_scale": (".dora_scale", ".magnitude")},
            "peft-lora": {
                "magnitude": (
                    ".lora_magnitude_vector",
                    ".lora_magnitude_vector.weight",
                    ".lora_magnitude_vector.default.weight",
                )
            },
        },
        wraps=True,
        compared="formula, LyCORIS, PEFT",
    ),
)
