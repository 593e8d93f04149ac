"""Merge operators: their definition, and their inputs.

An operator combines the ΔW of several adapters at one module. Its space decides its inputs:

- `scalars`: weights and inner products. It returns a coefficient for each term, and the result is the
  weighted sum, which needs no dense matrix.
- `factors`: a small matrix for each term, its core: `ΔWᵢ = P Cᵢ Qᵀ` with orthonormal P and Q that all
  terms share. It returns the core of the result. For an operator that commutes with rotations this is
  exact, and no dense matrix is needed.
- `elements`: blocks of rows of the dense ΔWᵢ. It returns the same rows of the result, which is then
  cut to a rank by a truncated SVD.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from loramerge.algebra.arrays import Array
from loramerge.algebra.laws import LAWS
from loramerge.algebra.scale import SCALES, checked_scale
from loramerge.errors import UsageError, listed, nearest
from loramerge.parameters import Parameter, checked, parameters_of

__all__ = [
    "Cores",
    "Magnitude",
    "Method",
    "NoParameters",
    "Norm",
    "Operator",
    "Rows",
    "Scalars",
    "Space",
    "Statistic",
    "Variance",
]

Space = Literal["factors", "elements", "scalars"]


@dataclass(frozen=True)
class Scalars:
    """The terms of a module as a `scalars` operator sees them.

    Args:
        module: its name.
        weights: weight of each term.
        positions: position of each term's adapter among the inputs, from 0.
        multiply: function that computes `products`.
    """

    module: str
    weights: tuple[float, ...]
    positions: tuple[int, ...]
    multiply: Callable[[], Array] = field(repr=False)

    @cached_property
    def products(self) -> Array:
        """The inner products ⟨ΔWᵢ, ΔWⱼ⟩, `(terms, terms)` in float64, without the weights."""
        return self.multiply()


@dataclass(frozen=True)
class Cores:
    """The terms of a module as a `factors` operator sees them.

    Args:
        module, weights, positions: see `Scalars`.
        values: the cores Cᵢ, each `(p, q)` in float64, without the weights.
    """

    module: str
    weights: tuple[float, ...]
    positions: tuple[int, ...]
    values: tuple[Array, ...]


@dataclass(frozen=True)
class Rows:
    """A block of rows of the terms of a module, as an `elements` operator sees them.

    Args:
        module, weights, positions: see `Scalars`.
        values: the same rows of each ΔWᵢ, `(rows, columns)`, without the weights; in float64, or in
            float32 where that holds all of them exactly, as the changes of float16 weights.
        first: index of the first row.
        statistics: name → value for each term, as the operator declares them; they are those of the
            whole ΔWᵢ, not of these rows.
    """

    module: str
    weights: tuple[float, ...]
    positions: tuple[int, ...]
    values: tuple[Array, ...]
    first: int = 0
    statistics: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def uniform(self, term: int, seed: int) -> Array:
        """Return random numbers in [0, 1), one for each entry of a term's rows.

        They depend only on the seed, the module, the position of the term's adapter and the place
        of the entry, not on threads or blocks. Adapters get different numbers.

        Source: Philox of numpy, keyed by a hash.
        """
        import numpy as np

        rows, columns = self.values[term].shape
        text = f"{seed}/{self.positions[term]}/{self.module}"
        key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
        steps = -(-columns // _PER_STEP)  # each row starts at a step of the generator
        stream = np.random.Philox(key=key).advance(self.first * steps)
        drawn = np.random.Generator(stream).random((rows, steps * _PER_STEP))
        return drawn[:, :columns]


_PER_STEP = 4  # numbers of 64 bits that one step of Philox gives


@dataclass(frozen=True)
class Magnitude:
    """The threshold of the largest entries of a ΔW.

    Args:
        share: share of the entries at or above the threshold, in [0, 1]; the threshold is infinity
            where the share is less than one entry.
    """

    share: float

    def of(self, values: Array) -> float:
        """Return the threshold for a dense `(out, in·kh·kw)` matrix."""
        import numpy as np

        count = self.count(values.size)
        if count == 0:
            return float("inf")
        largest: float = np.partition(np.abs(values).reshape(-1), -count)[-count]
        return float(largest)

    def count(self, size: int) -> int:
        """Return how many of so many entries lie at or above the threshold."""
        return int(self.share * size * (1 + 1e-12))


@dataclass(frozen=True)
class Norm:
    """The Frobenius norm ‖ΔW‖ of a term, or of its entries that vary most across terms.

    Args:
        share: share of the entries that count, by largest variance, as of `Variance`; None: all.
    """

    share: float | None = None

    def of_each(self, terms: Sequence[Array]) -> tuple[float, ...]:
        """Return the norm of each of several dense `(out, in·kh·kw)` matrices of one shape."""
        if self.share is None:
            return tuple(map(self.of, terms))
        variance = Variance(self.share)
        varies = variance.of_entries(terms) >= variance.across(terms)
        return tuple(self.of(values * varies) for values in terms)

    def of(self, values: Array) -> float:
        """Return the norm of a dense `(out, in·kh·kw)` matrix."""
        return math.sqrt(float((values**2).sum()))


@dataclass(frozen=True)
class Variance:
    """The threshold of the entries that vary most across terms; one for all terms.

    Args:
        share: share of the entries at or above the threshold, in [0, 1], as of `Magnitude`.
    """

    share: float

    def across(self, terms: Sequence[Array]) -> float:
        """Return the threshold for dense `(out, in·kh·kw)` matrices of one shape."""
        return Magnitude(self.share).of(self.of_entries(terms))

    def of_entries(self, terms: Sequence[Array]) -> Array:
        """Return the variance of each entry across terms, in the shape of one of them."""
        import numpy as np

        return np.var(np.stack(terms), axis=0)


Statistic = Magnitude | Norm | Variance


@dataclass(frozen=True)
class NoParameters:
    """The parameters of an operator that has none."""


def _sum_of_ranks(ranks: Sequence[int]) -> int:
    return sum(ranks)


def _largest_rank(ranks: Sequence[int]) -> int:
    return max(ranks)


@dataclass(frozen=True)
class Operator:
    """A way to combine the ΔW of several adapters.

    Args:
        name: word of `--method`: lower case letters, digits and hyphens.
        space: the inputs of `merge`, see this module's docstring.
        merge: function of its inputs (`Scalars`, `Cores` or `Rows`) and of the parameters. It
            returns a coefficient for each term, a core, or rows, and applies the weights itself.
        title: one line that describes it.
        parameters: frozen dataclass of its own parameters, each field `Annotated` with `Doc`.
        rank_bound: function of the ranks of the inputs that gives the rank of the result. No result
            of `scalars` and `factors` may have a higher one; one of `elements` is cut to it where no
            criterion chooses its rank. By default the sum for the former, the largest for the latter.
        statistics: function of the parameters that declares the statistics of each whole ΔW for an
            `elements` operator.
        alone: whether `merge` also gets modules that a single adapter has; otherwise they become
            weight · ΔW.
        formula, when, source: the definition, when to use it, and where it is from.
        laws: names of the laws it claims, see `algebra.laws`.
        scale: the final scale where none is given, see `algebra.scale`.
        of_weights: whether it also combines weights themselves, rather than changes of a base.
        inputs: the least and the greatest number of adapters; None: any number.
        order: lower ones come first in lists.

    Raises:
        UsageError: if the definition is not valid.
    """

    name: str
    space: Space
    merge: Callable[[Any, Any], Any]
    title: str
    parameters: type[Any] = NoParameters
    rank_bound: Callable[[Sequence[int]], int] | None = None
    statistics: Callable[[Any], Mapping[str, Statistic]] | None = None
    alone: bool = False
    formula: str = ""
    when: str = ""
    source: str = ""
    laws: tuple[str, ...] = ()
    scale: str = "literal"
    of_weights: bool = False
    inputs: tuple[int, int | None] = (1, None)
    order: int = 100

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", self.name):
            raise UsageError(
                "the name of an operator has lower case letters, digits and hyphens",
                found=self.name,
            )
        if self.space not in get_args(Space):
            raise self._refused("the space is not known", listed(get_args(Space)), self.space)
        if self.scale not in SCALES:
            raise self._refused("the final scale is not known", listed(SCALES), self.scale)
        for law in self.laws:
            if law not in LAWS:
                close = nearest(law, LAWS)
                hint = f"did you mean {close!r}?" if close else None
                raise self._refused(
                    f"{law!r} is not a known law", listed(list(LAWS), 20), hint=hint
                )
        if self.statistics is not None and self.space != "elements":
            raise self._refused(
                "only operators on elements have statistics", "elements", self.space
            )
        kind: Any = self.parameters
        settings = getattr(kind, "__dataclass_params__", None)
        if settings is None or not settings.frozen:
            raise self._refused("its parameters are not a frozen dataclass", found=kind)
        bare = {f.name for f in dataclasses.fields(kind)} - {p.name for p in self.own_parameters}
        if bare:
            raise self._refused(
                f"the parameter {sorted(bare)[0]!r} has no help",
                'Annotated[float, Doc("its meaning")]',
            )

    def _refused(
        self, problem: str, expected: object = None, found: object = None, hint: str | None = None
    ) -> UsageError:
        return UsageError(
            f"operator {self.name}: {problem}", expected=expected, found=found, hint=hint
        )

    @property
    def own_parameters(self) -> tuple[Parameter, ...]:
        """The fields of its dataclass of parameters."""
        return parameters_of(self.parameters)

    def has(self, parameter: str) -> bool:
        """Return whether it has a parameter of this name."""
        return any(one.name == parameter for one in self.own_parameters)

    @property
    def code(self) -> str | None:
        """The digest of the file that defines it, None for the operators of loramerge."""
        if self.merge.__module__.partition(".")[0] == "loramerge":
            return None
        file = inspect.getsourcefile(self.merge)
        found = Path(file).read_bytes() if file is not None and Path(file).is_file() else None
        return hashlib.sha256(found or self.merge.__code__.co_code).hexdigest()

    @property
    def is_sum(self) -> bool:
        """True for the plain weighted sum, whose weights may be applied at any time."""
        return "sum" in self.laws

    def rank_of(self, ranks: Sequence[int], shape: tuple[int, int]) -> int:
        """Return the rank of a result where no criterion chooses it.

        Args:
            ranks: of the terms.
            shape: `(out, in·kh·kw)`.
        """
        default = _largest_rank if self.space == "elements" else _sum_of_ranks
        return min((self.rank_bound or default)(ranks), *shape)

    def highest_rank(self, ranks: Sequence[int], shape: tuple[int, int], *, chosen: bool) -> int:
        """Return the highest rank that a result can have.

        Args:
            ranks, shape: see `rank_of`.
            chosen: whether a criterion chooses the rank.
        """
        if self.space == "elements" and chosen:
            return min(shape)
        return self.rank_of(ranks, shape)


@dataclass(frozen=True)
class Method:
    """An operator with values of its parameters."""

    operator: Operator
    parameters: Any
    scale: str | float = "literal"

    @property
    def is_sum(self) -> bool:
        """True if the result is the plain weighted sum."""
        return self.operator.is_sum and self.scale == "literal"

    def require_count(self, adapters: int) -> None:
        """Refuse a number of adapters that the operator is not defined for.

        Raises:
            UsageError: naming how many it takes.
        """
        least, most = self.operator.inputs
        if adapters < least or (most is not None and adapters > most):
            takes = f"{least}" if least == most else f"at least {least}"
            raise UsageError(
                f"the method {self.operator.name} is not defined for this number of adapters",
                expected=takes if most in (None, least) else f"{least} to {most}",
                found=adapters,
            )

    @classmethod
    def of(
        cls,
        operator: Operator,
        values: Mapping[str, Any] | None = None,
        scale: str | float | None = None,
    ) -> Method:
        """Return an operator with values by name; the others have their defaults.

        Args:
            scale: the final scale; None is the operator's own.

        Raises:
            UsageError: if a value is missing, not known, or not allowed.
        """
        final = operator.scale if scale is None else checked_scale(scale)
        own = {one.name: one for one in operator.own_parameters}
        given: dict[str, Any] = {}
        for name, value in (values or {}).items():
            if name not in own:
                raise UsageError(
                    f"the method {operator.name} has no parameter {name!r}",
                    expected=listed(list(own)) or "no parameters",
                )
            one = own[name]
            given[name] = (
                tuple(checked(one, part) for part in value) if one.many else checked(one, value)
            )
        missing = [name for name, one in own.items() if one.required and name not in given]
        if missing:
            raise UsageError(f"the method {operator.name} needs a value for {missing[0]!r}")
        return cls(operator, operator.parameters(**given), final)
