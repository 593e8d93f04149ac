"""Merge operators: their definition, and their inputs.

An operator combines the ΔW of several adapters at one module. Its space decides its inputs:

- `scalars`: weights and inner products. It returns a coefficient for each term, and the result is the
  weighted sum, which needs no dense matrix.
- `factors`: a small matrix for each term, its core: `ΔWᵢ = P Cᵢ Qᵀ` with orthonormal P and Q that all
  terms share. It returns the core of the result. For an operator that commutes with rotations this is
  exact, and no dense matrix is needed.
- `columns`: as `factors`, but with the columns of ΔW as they are: `ΔWᵢ = P Cᵢ`. For an operator that
  commutes with rotations of the outputs alone.
- `elements`: blocks of rows of the dense ΔWᵢ. It returns the same rows of the result, which is then
  cut to a rank by a truncated SVD.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from loramerge.algebra.arrays import Array
from loramerge.algebra.laws import LAWS
from loramerge.algebra.scale import SCALES
from loramerge.algebra.statistics import Pool, Statistic
from loramerge.errors import UsageError, listed, nearest
from loramerge.parameters import Parameter, parameters_of

__all__ = ["NoParameters", "Operator", "Space"]

Space = Literal["factors", "columns", "elements", "scalars"]


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
            of `scalars`, `factors` and `columns` may have a higher one; one of `elements` is cut to it
            where no criterion chooses its rank. By default the sum, for `elements` the largest.
        statistics: function of the parameters that declares the statistics of each whole ΔW for an
            `elements` operator.
        pool: what an `elements` operator needs to know of all modules together.
        alone: whether `merge` also gets modules that a single adapter has; otherwise they become
            weight · ΔW.
        formula, when, source: the definition, when to use it, and where it is from.
        when_models: the same as `when`, for checkpoints; empty where that holds for them, too.
        laws: names of the laws it claims, see `algebra.laws`.
        scale: the final scale where none is given, see `algebra.scale`.
        correct: function of the result of any operator and of the weighted changes, matrices of one
            shape, that gives the corrected result. An operator that has one can follow another
            (`--correction`); it must commute with rotations.
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
    pool: Pool | None = None
    alone: bool = False
    formula: str = ""
    when: str = ""
    when_models: str = ""
    source: str = ""
    laws: tuple[str, ...] = ()
    scale: str = "literal"
    correct: Callable[[Array, Iterable[Array]], Array] | None = None
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
        if (self.statistics or self.pool) is not None and self.space != "elements":
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
    def needs_factors(self) -> bool:
        """True if it works on low-rank factors, which whole checkpoints do not have."""
        return self.space in ("factors", "columns")

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
