"""The criteria that lower ranks, and the rank that each site keeps by its own spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from loramerge.errors import NumericsError, Setting, UsageError

__all__ = ["RankRule", "check_errors", "relative", "site_rank"]


@dataclass(frozen=True)
class RankRule:
    """The criteria of resize and mix. All that are given apply together; the smallest rank wins.

    Args:
        rank: at most this rank.
        conv_rank: at most this rank for kernels larger than 1×1; None means `rank`.
        energy: smallest k that keeps this share of Σσ² (0–1].
        ratio: keep σ > σ₀ / ratio (> 1).
        cumulative: smallest k that keeps this share of Σσ (0–1].
        max_size: bytes of the file on disk, over all sites together.
        max_error: relative error over all sites. Alone it chooses the ranks; beside another
            criterion it refuses.
        max_module_error: refuse if any module's relative error exceeds it.
    """

    rank: int | None = None
    conv_rank: int | None = None
    energy: float | None = None
    ratio: float | None = None
    cumulative: float | None = None
    max_size: int | None = None
    max_error: float | None = None
    max_module_error: float | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("energy", 0.0, 1.0), ("cumulative", 0.0, 1.0), ("max_error", 0.0, 1.0),
            ("max_module_error", 0.0, 1.0),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not low < value <= high:
                raise UsageError(f"{name} must lie in (0, 1]", found=value)
        if self.ratio is not None and not self.ratio > 1:
            raise UsageError("ratio must be above 1", found=self.ratio)
        for name in ("rank", "conv_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1", found=value)

    @property
    def per_site(self) -> bool:
        """True if a criterion looks at one site's spectrum alone."""
        return any(
            value is not None
            for value in (self.rank, self.conv_rank, self.energy, self.ratio, self.cumulative)
        )

    @property
    def error_chooses(self) -> bool:
        """True if `max_error` chooses the ranks; false if it only checks the choice of others."""
        return self.max_error is not None and not self.per_site and self.max_size is None

    def cap(self, kernel: int) -> int | None:
        """Return the highest rank of a site; `kernel` is kh·kw."""
        return self.conv_rank if kernel > 1 and self.conv_rank is not None else self.rank

    @property
    def truncates(self) -> bool:
        """True if the rule can lower a rank."""
        return self.per_site or self.max_size is not None or self.max_error is not None


def site_rank(
    singular_values: Any,
    rule: RankRule,
    kernel: int,
    numerical_rank: int,
    rest: float = 0.0,
    norm: float | None = None,
) -> int:
    """Return the rank one site keeps under the per-site criteria.

    Args:
        singular_values: descending numpy vector.
        kernel: kh·kw of the site (1 for linear layers and 1×1 convolutions).
        numerical_rank: never more than this is kept.
        rest: energy of further directions, which were not computed; `cumulative` needs all of them.
        norm: of the base's weight, which `ratio` then compares with instead of σ₀; the rank may be 0.
    """
    import numpy as np

    s = singular_values[:numerical_rank]
    if len(s) == 0:
        return 0
    k = len(s)
    cap = rule.cap(kernel)
    if cap is not None:
        k = min(k, cap)
    if rule.energy is not None:
        k = min(k, _smallest_share(np.cumsum(s**2), rule.energy, rest))
    if rule.cumulative is not None:
        k = min(k, _smallest_share(np.cumsum(s), rule.cumulative))
    if rule.ratio is not None:
        least = (s[0] if norm is None else norm) / rule.ratio
        k = min(k, max(1 if norm is None else 0, int((s > least).sum())))
    return k


def _smallest_share(sums: Any, share: float, rest: float = 0.0) -> int:
    """Return the smallest k whose partial sum reaches `share` of the whole, all if none does.

    A share of 1 means all; a relative 1e-12 forgives the rounding of the sums.

    Args:
        rest: what the whole has beside the last sum.
    """
    reached = sums >= share * (sums[-1] + rest) * (1 - 1e-12)
    return int(reached.argmax()) + 1 if reached.any() else len(sums)


def check_errors(rule: RankRule, total: float, worst: tuple[str, float] | None) -> None:
    """Refuse a result whose errors exceed the limits of the rule.

    Raises:
        NumericsError: naming the figure and the limit.
    """
    if rule.max_error is not None and total > rule.max_error * (1 + 1e-9):
        raise NumericsError(
            "the relative error exceeds the limit max_error",
            expected=f"≤ {rule.max_error:g}",
            found=f"{total:.4g}",
            hint=(
                "keep a higher rank, or give ",
                Setting("max_error"),
                " alone to choose the ranks by it",
            ),
        )
    if rule.max_module_error is not None and worst is not None:
        name, error = worst
        if error > rule.max_module_error * (1 + 1e-9):
            raise NumericsError(
                "a module's relative error exceeds the limit max_module_error",
                module=name,
                expected=f"≤ {rule.max_module_error:g}",
                found=f"{error:.4g}",
                hint="keep a higher rank",
            )


def relative(lost: float, energy: float) -> float:
    """Return √(lost / energy), 0 for a zero delta."""
    return math.sqrt(max(lost, 0.0) / energy) if energy > 0 else 0.0
