"""The canonical model's small parts: sites, and the abstract delta that every kind implements."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from loramerge.errors import NotLowRank, NumericsError, ShapeError, UnsupportedKind
from loramerge.families import Parameter
from loramerge.files.tensors import ArrayTensor, Tensor, same_bytes

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = [
    "AddRows",
    "Delta",
    "ReadRows",
    "Site",
    "cast",
    "identical",
    "kernel_of",
    "put",
    "times",
    "values",
]

# (start, stop, base rows, out, fresh): put ΔW[start:stop] into `out` if `fresh`, else add it.
# `base rows` are the same rows of the unmodified weight, as floats.
AddRows = Callable[[int, int, Any, Any, bool], None]
# (start, stop) → those rows of the unmodified weight, as floats, flattened to `(rows, in·kh·kw)`.
ReadRows = Callable[[int, int], Any]


class Site(NamedTuple):
    """Where a delta lies: one module, or the several that a file stores fused; and the parameter.

    `spans` says how many equal parts of the rows each of several modules takes, in their order.
    """

    modules: tuple[str, ...]
    parameter: Parameter = "weight"
    spans: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The name for people: the module's, with `.bias` where it is the bias.

        What several modules have in common is said once: `block.0.attn.to_q+to_k+to_v`.
        """
        joined = self.modules[0] if len(self.modules) == 1 else _joined(self.modules)
        return joined if self.parameter == "weight" else f"{joined}.{self.parameter}"

    def bounds(self, rows: int) -> tuple[int, ...]:
        """Return where the rows of each module begin, and the end, in a delta of so many rows.

        Raises:
            ShapeError: if the rows cannot be divided so.
        """
        if len(self.modules) == 1:
            return (0, rows)
        unit, rest = divmod(rows, sum(self.spans))
        if rest:
            raise ShapeError(
                "the rows of a fused delta cannot be divided among its modules",
                module=self.name,
                expected=f"a multiple of {sum(self.spans)}",
                found=rows,
            )
        return tuple(unit * sum(self.spans[:i]) for i in range(len(self.spans) + 1))

    def part(self, modules: Sequence[str]) -> Site:
        """Return the site of some of the modules."""
        spans = tuple(
            span for m, span in zip(self.modules, self.spans, strict=False) if m in modules
        )
        kept = tuple(m for m in self.modules if m in modules)
        return Site(kept, self.parameter, spans if len(kept) > 1 else ())

    @property
    def component(self) -> str:
        """The component all its modules belong to."""
        return self.modules[0].partition(".")[0]


def _joined(modules: tuple[str, ...]) -> str:
    paths = [module.split(".") for module in modules]
    common = 0
    while len({tuple(path[: common + 1]) for path in paths}) == 1:
        common += 1
    head = "".join(f"{word}." for word in paths[0][:common])
    return head + "+".join(".".join(path[common:]) for path in paths)


class Delta(ABC):
    """ΔW of one site. Immutable; one final class per kind.

    Attributes:
        kind: `lora`, `tucker`, `loha`, `lokr`, `dora`, … as `inspect` names it.
        shape: `(out, in)`, `(out, in, kh, kw)`, or `(n,)` for biases and norms; 0 where neither the
            file nor the family tells a size.
        needs_base: whether ΔW depends on the weight it is added to.
        weighs: whether a file can say the kind at another weight than 1.
        computable: whether ΔW can be had at all.
        optional: whether a base that lacks the parameter is no fault.
        peft_type: the type of PEFT configuration that holds the kind, None where none does.
    """

    needs_base: ClassVar[bool] = False
    weighs: ClassVar[bool] = True
    computable: ClassVar[bool] = True
    peft_type: ClassVar[str | None] = None

    kind: str
    shape: tuple[int, ...]
    optional: bool = False

    @property
    def dim(self) -> int | None:
        """The rank as the file counts it: the inner size of its factors."""
        return self.rank

    @property
    def hides_kernel(self) -> bool:
        """Whether the factors are those of a linear layer or of any kernel, flattened."""
        return False

    @property
    def core(self) -> Any:
        """The `Scaled` that the kind is made of, or None; it is built on this class, so unnamed here."""
        return None

    @property
    def rank(self) -> int | None:
        """Rank of the exact low-rank form, or None if there is none."""
        return None

    @property
    def alpha(self) -> float | None:
        """The alpha the file states (scale = alpha / rank), or None where it states none."""
        return None

    @property
    def numbers(self) -> tuple[float, ...]:
        """What ΔW depends on beside its tensors: scale, weight, axis, constraint, size of blocks."""
        return ()

    def free_parts(self) -> tuple[Delta, ...]:
        """Return deltas that need no base and, with `numbers`, say all that this one does.

        Only kinds that depend on the base have such parts; two are equal if their parts are.
        """
        return ()

    def factors(self, dtype: str = "float32") -> tuple[Array, Array]:
        """Return the exact low-rank form with the scale folded into up.

        Returns:
            up `(out, r)` and down `(r, in·kh·kw)` of numpy dtype `dtype`.

        Raises:
            NotLowRank: if this kind has no such form.
        """
        raise NotLowRank(f"a delta of kind {self.kind} has no exact low-rank form")

    @abstractmethod
    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        """Return ΔW as an array of `shape`.

        Args:
            base: the unmodified weight, needed where `needs_base`.
            dtype: numpy float dtype of the computation and the result.
        """

    @abstractmethod
    def scaled(self, weight: float) -> Delta:
        """Return `weight · ΔW`, exactly."""

    def bare(self) -> Delta:
        """Return the same without the scale of its factors, a sign apart, if there is one."""
        return self

    @abstractmethod
    def stored(self) -> Mapping[str, Tensor]:
        """Return the tensors as they are in the file, by role."""

    @abstractmethod
    def encoded(self, dtype: str | None, *, alpha: bool) -> dict[str, Tensor]:
        """Return the tensors to write, by role.

        Args:
            dtype: safetensors name of the float type to write, or None to keep the stored one.
            alpha: whether the target keeps alpha; otherwise the scale is folded into up.

        Raises:
            NumericsError: if a value does not fit the type.
        """

    def conformed(self, shape: tuple[int, ...]) -> Delta:
        """Return the same delta with the axes of `shape`, if only 1×1 kernels tell them apart."""
        return self

    def respelled(self, roles: Set[str], beside: Delta | None = None) -> Delta:
        """Return the same ΔW under other roles, if that is what it takes to say it in `roles`.

        Args:
            beside: the delta of the weight, where this is one of the bias.
        """
        return self

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Say whether a weight of `shape` can be changed so (1×1 kernels apart)."""
        return (shape[0], math.prod(shape[1:])) == self.flat_shape

    @abstractmethod
    def row_adder(self, dtype: str = "float32", read: ReadRows | None = None) -> AddRows:
        """Return a function that puts or adds row ranges of ΔW (flattened to `(out, in·kh·kw)`).

        Its memory is that of the factors and one block of rows, never of ΔW; only BOFT, whose
        stages mix all rows, holds the whole weight.

        Args:
            read: gives any rows of the unmodified weight, for kinds whose rows depend on others.
        """

    def splits_exactly(self, bounds: Sequence[int]) -> bool:
        """Say whether each part of the rows is a delta for itself, which `split` gives.

        Args:
            bounds: where each part begins, and the end.
        """
        return True

    def rows(self, ranges: Sequence[tuple[int, int]]) -> Delta:
        """Return the delta of row ranges (first, last plus one), one after the other.

        Raises:
            UnsupportedKind: if this delta cannot be cut so.
        """
        raise UnsupportedKind(
            f"a delta of kind {self.kind} cannot be cut into these rows",
            hint="keep the dialect of the file, which stores these modules as one",
        )

    def joined(
        self, deltas: Sequence[Delta], fuse: Callable[[Sequence[Delta]], Delta]
    ) -> Delta | None:
        """Return the delta whose rows are those of deltas one after the other, None if none is exact.

        Asked only of kinds that depend on the base; the others are joined by what they give.

        Args:
            deltas: of which this is the first.
            fuse: joins as many deltas that need no base.
        """
        return None

    def split(self, bounds: Sequence[int]) -> list[Delta | None]:
        """Cut the delta at rows, exactly and at the smallest rank; None stands for a zero part.

        Args:
            bounds: where each part begins, and the end.

        Raises:
            UnsupportedKind: if this kind cannot be cut.
        """
        return [self.rows((pair,)) for pair in pairwise(bounds)]

    @property
    def flat_shape(self) -> tuple[int, int]:
        """`(out, in·kh·kw)`; a vector counts as one column."""
        return self.shape[0], math.prod(self.shape[1:])


def identical(first: Delta, second: Delta) -> bool:
    """Say whether two deltas are of one kind and hold the same tensors and numbers."""
    ours, theirs = first.stored(), second.stored()
    parts = zip(first.free_parts(), second.free_parts(), strict=False)
    return (
        first.kind == second.kind
        and ours.keys() == theirs.keys()
        and first.numbers == second.numbers
        and all(same_bytes(ours[role], theirs[role]) for role in ours)
        and all(one.numbers == other.numbers for one, other in parts)
    )


def values(tensor: Tensor, dtype: str, shape: tuple[int, ...] | None = None) -> Array:
    """Return a tensor's values as floats of a numpy dtype, reshaped."""
    array = tensor.numpy()
    array = array.astype(dtype, copy=False)
    return array if shape is None else array.reshape(shape)


def times(array: Array, factor: float) -> Array:
    """Return an array times a number; what overflows becomes infinite, which `cast` refuses."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        product: Array = array * factor
    return product


def cast(array: Array, dtype: str, what: str) -> ArrayTensor:
    """Return an array rounded to a safetensors float type, to nearest.

    Raises:
        NumericsError: if a finite value becomes infinite, or a value is not finite to begin with.
    """
    import numpy as np

    from loramerge.files.dtypes import DTYPES, numpy_dtype

    if not np.isfinite(array).all():
        raise NumericsError(
            "NaN or infinity in the result",
            module=what,
            hint="inspect --deep shows which input holds it",
        )
    with np.errstate(over="ignore", under="ignore"):
        rounded = array.astype(numpy_dtype(dtype))
    if not np.isfinite(rounded.astype("float32")).all():
        raise NumericsError(
            f"values up to {np.abs(array).max():.3g} do not fit {DTYPES[dtype].word}",
            module=what,
            hint="give --dtype float32 or --dtype bfloat16",
        )
    return ArrayTensor(rounded)


def put(rows: Array, out: Any, fresh: bool) -> None:
    """Put rows into `out`, or add them: what a row adder ends with."""
    if fresh:
        out[:] = rows
    else:
        out += rows


def kernel_of(shape: tuple[int, ...], like: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return a shape with the kernel its module has, where the factors of ΔW hide it.

    Args:
        shape: `(out, in[, kh, kw])`, or `(out, in·kh·kw)` of flattened factors.
        like: the module's shape in its family, if that is known; only its kernel counts.
    """
    if like is None or len(shape) != 2 or len(like) < 3:
        return shape
    kernel = like[2:]
    size = math.prod(kernel)
    return shape if shape[1] % size else (shape[0], shape[1] // size, *kernel)
