"""Choose the rank of each site: by its spectrum, or over all sites by a size or an error."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from loramerge.errors import NumericsError, Setting, UsageError

__all__ = ["Candidate", "RankRule", "ranks_for_error", "ranks_for_size", "site_rank"]


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
    singular_values: Any, rule: RankRule, kernel: int, numerical_rank: int, rest: float = 0.0
) -> int:
    """Return the rank one site keeps under the per-site criteria.

    Args:
        singular_values: descending numpy vector.
        kernel: kh·kw of the site (1 for linear layers and 1×1 convolutions).
        numerical_rank: never more than this is kept.
        rest: energy of further directions, which were not computed; `cumulative` needs all of them.
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
        k = min(k, max(1, int((s > s[0] / rule.ratio).sum())))
    return k


def _smallest_share(sums: Any, share: float, rest: float = 0.0) -> int:
    """Return the smallest k whose partial sum reaches `share` of the whole, all if none does.

    A share of 1 means all; a relative 1e-12 forgives the rounding of the sums.

    Args:
        rest: what the whole has beside the last sum.
    """
    reached = sums >= share * (sums[-1] + rest) * (1 - 1e-12)
    return int(reached.argmax()) + 1 if reached.any() else len(sums)


@dataclass(frozen=True)
class Candidate:
    """A site as the global criteria see it.

    Args:
        energies: σ² of the directions that may be kept, descending.
        direction: bytes of one direction.
        first: bytes that the first direction costs beside (header entries, alpha).
    """

    energies: Sequence[float]
    direction: int
    first: int


def _hull(candidate: Candidate) -> list[tuple[float, int, int]]:
    """Return the concave hull of kept energy over bytes as steps (density, from k, to k)."""
    points = [(0, 0.0, 0)]
    gained = 0.0
    for k, energy in enumerate(candidate.energies, 1):
        gained += energy
        points.append((candidate.first + k * candidate.direction, gained, k))
    hull: list[tuple[int, float, int]] = []
    for point in points:
        while len(hull) >= 2 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return [(_slope(a, b), a[2], b[2]) for a, b in pairwise(hull)]


def _slope(a: tuple[int, float, int], b: tuple[int, float, int]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def ranks_for_size(
    candidates: Sequence[Candidate], budget: int, exact_size: Callable[[Sequence[int]], int]
) -> list[int]:
    """Return the ranks that lose the least energy in a file of at most `budget` bytes.

    Steps of each site's concave hull are taken by density while they fit. The first that does not
    fit is taken in part, which solves the relaxed problem. Single directions then fill the rest.
    The lost energy is at most that of the relaxed optimum plus one direction.

    Args:
        candidates: every site that may be cut.
        budget: bytes of the whole file.
        exact_size: function of the ranks that gives the file's exact size; bytes that do not depend
            on the ranks are part of it.

    Raises:
        UsageError: if even the file without any direction is larger.
    """
    ranks = [0] * len(candidates)
    empty = exact_size(ranks)
    if empty > budget:
        raise UsageError(
            "the file cannot be that small: its tensors without a rank alone are larger",
            expected=f"at least {empty:,} bytes",
            found=f"{budget:,} bytes",
        )
    steps = sorted(
        (
            (-density, index, start, stop)
            for index, candidate in enumerate(candidates)
            for density, start, stop in _hull(candidate)
        ),
    )
    room = budget - empty
    blocked: set[int] = set()
    for _, index, start, stop in steps:
        candidate = candidates[index]
        if index in blocked:
            continue
        once = candidate.first if start == 0 else 0
        count = min(stop - start, (room - once) // candidate.direction)
        if count > 0:
            ranks[index] = start + count
            room -= once + count * candidate.direction
        if ranks[index] != stop:
            blocked.add(index)
    _fill(candidates, ranks, budget, exact_size)
    return ranks


def _fill(
    candidates: Sequence[Candidate],
    ranks: list[int],
    budget: int,
    exact_size: Callable[[Sequence[int]], int],
) -> None:
    """Bring the exact size to at most the budget, then add the best directions that still fit.

    The exact size is asked only where estimates leave it open whether a direction fits: it takes as
    long as encoding the whole adapter.
    """
    size = _shrink(candidates, ranks, budget, exact_size)
    heap = [
        (-candidate.energies[ranks[i]] / candidate.direction, i)
        for i, candidate in enumerate(candidates)
        if ranks[i] < len(candidate.energies)
    ]
    heapq.heapify(heap)
    unsure: list[int] = []  # added since the exact size was last asked; `size` is at least theirs
    refused: Counter[tuple[int, int, int]] = Counter()
    while heap:
        _, i = heapq.heappop(heap)
        candidate = candidates[i]
        alike = (candidate.direction, ranks[i], 0 if ranks[i] else candidate.first)
        cost = candidate.direction + (candidate.first if ranks[i] == 0 else 0)
        most = cost + candidate.first + _HEADER_SLACK
        if size + most > budget and unsure:
            size = _settle(ranks, unsure, budget, exact_size)
        if size + cost > budget + candidate.first + _HEADER_SLACK or refused[alike] >= _REFUSALS:
            continue
        ranks[i] += 1
        if size + most <= budget:
            unsure.append(i)
            size += most
        elif (tried := exact_size(ranks)) <= budget:
            size = tried
        else:
            ranks[i] -= 1
            refused[alike] += 1
            continue
        if ranks[i] < len(candidate.energies):
            heapq.heappush(heap, (-candidate.energies[ranks[i]] / candidate.direction, i))
    if unsure:
        _settle(ranks, unsure, budget, exact_size)


_HEADER_SLACK = 64  # bytes of digits and padding in the header that a direction may bring, about
_REFUSALS = 3  # of modules alike in bytes and rank that do not fit; then no other of them does


def _settle(
    ranks: list[int],
    unsure: list[int],
    budget: int,
    exact_size: Callable[[Sequence[int]], int],
) -> int:
    """Return the exact size, after taking back the last directions if they do not fit after all."""
    while (size := exact_size(ranks)) > budget:
        ranks[unsure.pop()] -= 1
    unsure.clear()
    return size


def _shrink(
    candidates: Sequence[Candidate],
    ranks: list[int],
    budget: int,
    exact_size: Callable[[Sequence[int]], int],
) -> int:
    """Drop the weakest directions until the file fits, as few as possible; return its exact size."""
    size = exact_size(ranks)
    heap = [
        (candidate.energies[ranks[i] - 1] / candidate.direction, i)
        for i, candidate in enumerate(candidates)
        if ranks[i]
    ]
    heapq.heapify(heap)
    dropped: list[int] = []
    low = 0
    while size > budget and heap:  # estimates of header bytes were too low
        low, excess = len(dropped), size - budget
        while heap and excess > 0:
            _, i = heapq.heappop(heap)
            ranks[i] -= 1
            dropped.append(i)
            candidate = candidates[i]
            excess -= candidate.direction
            if ranks[i]:
                heapq.heappush(heap, (candidate.energies[ranks[i] - 1] / candidate.direction, i))
        size = exact_size(ranks)
    high = now = len(dropped)

    def go_to(count: int) -> None:
        nonlocal now
        for i in dropped[count:now]:
            ranks[i] += 1
        for i in dropped[now:count]:
            ranks[i] -= 1
        now = count

    step = 1  # headers shrink, too, so that a few too many may be dropped
    while high - low > 1:
        go_to(max(high - step, (low + high) // 2))
        tried = exact_size(ranks)
        if tried <= budget:
            high, size, step = now, tried, 2 * step
        else:
            low, step = now, 1
    go_to(high)
    return size


def ranks_for_error(
    candidates: Sequence[Candidate], energy: float, max_error: float, lost: float = 0.0
) -> list[int]:
    """Return small ranks that keep the total relative error at most `max_error`.

    Directions are dropped by energy per byte, the weakest first, while what is dropped stays within
    `max_error² · energy`; a direction that would exceed it is kept, lighter ones are still tried.

    Args:
        energy: Σ‖ΔW‖_F² over all sites that can be cut.
        lost: the part of it that no candidate has.
    """
    ranks = [len(candidate.energies) for candidate in candidates]
    allowed = max_error**2 * energy * (1 + 1e-12)
    dropped = lost
    heap = [
        (candidate.energies[-1] / candidate.direction, i)
        for i, candidate in enumerate(candidates)
        if candidate.energies
    ]
    heapq.heapify(heap)
    while heap:
        _, i = heapq.heappop(heap)
        candidate = candidates[i]
        loss = candidate.energies[ranks[i] - 1]
        if dropped + loss > allowed:
            continue
        dropped += loss
        ranks[i] -= 1
        if ranks[i]:
            heapq.heappush(heap, (candidate.energies[ranks[i] - 1] / candidate.direction, i))
    return ranks


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
