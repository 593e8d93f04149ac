"""The user's coefficient of an adapter: one number, or one per component, block or module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from loramerge.adapter import Adapter, Site
from loramerge.algebra.per_module import PerModule, content_of, shown_number, values_of
from loramerge.errors import UsageError
from loramerge.families import Family

_LARGEST = (2 - 2**-23) * 2.0**127  # of float32

__all__ = ["Weight", "shown_number", "weight_content", "weight_of"]


@dataclass(frozen=True)
class Weight(PerModule[float]):
    """A coefficient for every site. The most specific one counts; they never multiply.

    The last pattern that matches the module's name, else its component's, else its block's, else
    `default`.

    Args:
        default: also for blocks that a vector does not name (some programs take 0 for those).
        components: component name → weight; `text_encoder` does not include `text_encoder_2`.
        blocks: a block vector of 12, 17, 20, 26, 57 or 61 values, see `algebra.blocks`.
        depth: weights at equal steps from the first block of the UNet to the last, interpolated.
        match: (case-sensitive pattern on the module's name, weight) pairs, the last match counts.
    """

    default: float = 1.0

    what = "weight"

    def __post_init__(self) -> None:
        numbers = (self.default, *self.components.values(), *self.blocks, *self.depth)
        for value in (*numbers, *(value for _, value in self.match)):
            if not abs(value) <= _LARGEST:  # NaN compares with nothing
                raise UsageError("a weight must be a finite number of float32", found=value)
        super().__post_init__()

    def times(self, factor: float) -> Weight:
        """Return all its coefficients times a factor."""
        return replace(
            self,
            default=factor * self.default,
            components={name: factor * one for name, one in self.components.items()},
            blocks=tuple(factor * one for one in self.blocks),
            depth=tuple(factor * one for one in self.depth),
            match=tuple((pattern, factor * one) for pattern, one in self.match),
        )

    @property
    def plain(self) -> bool:
        """True if it is one number for all modules."""
        return self == Weight(self.default)

    @property
    def states_default(self) -> bool:
        """True if modules that nothing names have another weight than 1."""
        return self.default != 1.0

    def of(self, site: Site, family: Family | None = None) -> float:
        """Return the coefficient of a site; blocks count only where the family is known."""
        return _stated(super().of(site, family))

    def on(self, adapter: Adapter) -> Callable[[Site], float]:
        """Return the function that gives the coefficient of each site of an adapter."""
        found = super().on(adapter)
        return lambda site: _stated(found(site))

    def among(
        self, modules: Iterable[str], family: Family | None, label: str
    ) -> Callable[[Site], float]:
        """Return the function that gives the coefficient of each site of a checkpoint."""
        found = super().among(modules, family, label)
        return lambda site: _stated(found(site))


def _stated(value: float | None) -> float:
    assert value is not None  # a weight has a default
    return float(value)


def weight_of(content: Any, where: str) -> Weight:
    """Return the weight that a number or a mapping states, as recipes and weight files have it.

    Args:
        content: a number, or a mapping of `default`, component words, `match` (pattern → number),
            and one of `blocks` (a vector), `preset` (a name), `depth` (numbers).
        where: named in errors.

    Raises:
        UsageError: naming the problem, with the nearest known word.
    """
    if not isinstance(content, Mapping):
        return Weight(_checked(content, where))
    return Weight(
        **values_of(
            content,
            where,
            ("weight", "numbers"),
            lambda v, rule: _checked(v, f"{where}: {rule}"),
        )
    )


def _checked(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"{where}: expected a number", found=value)
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        raise UsageError(
            f"{where}: a weight must be a finite number of float32",
            found=f"a number of {int(value).bit_length()} bits",
        ) from None


def weight_content(weight: Weight) -> float | dict[str, Any]:
    """Return a weight as `weight_of` reads it: a number, or a mapping without default values."""
    stated = content_of(weight, float)
    return float(weight.default) if stated.keys() <= {"default"} else stated
