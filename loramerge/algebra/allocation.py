"""Allocate ranks over all sites together: by the bytes of the file, or by the error of the whole."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from loramerge.errors import UsageError

__all__ = ["Candidate", "ranks_for_error", "ranks_for_size"]


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

    If nothing needs to be cut, nothing is. Else steps of each site's concave hull are taken by density
    while they fit. The first that does not fit is taken in part, which solves the relaxed problem.
    Single directions then fill the rest. The lost energy is at most that of the relaxed optimum plus
    one direction, and at most that of one rank for all sites in as many bytes.

    Args:
        candidates: every site that may be cut.
        budget: bytes of the whole file.
        exact_size: function of the ranks that gives the file's exact size; bytes that do not depend
            on the ranks are part of it.

    Raises:
        UsageError: if even the file without any direction is larger.
    """
    every = [len(candidate.energies) for candidate in candidates]
    if exact_size(every) <= budget:  # also of kinds that are smaller whole than cut
        return every
    ranks = [0] * len(candidates)
    empty = exact_size(ranks)
    if empty > budget:
        raise UsageError(
            "the file cannot be that small: its tensors without a rank alone are larger",
            expected=f"at least {empty:,} bytes",
            found=f"{budget:,} bytes",
        )
    _take_by_density(candidates, ranks, budget - empty)
    _fill(candidates, ranks, budget, exact_size)
    return _better_even(candidates, ranks, budget, exact_size) or ranks


def _take_by_density(candidates: Sequence[Candidate], ranks: list[int], room: int) -> None:
    """Raise ranks of 0 by the steps of the hulls, the densest first, within some bytes."""
    steps = sorted(
        (
            (-density, index, start, stop)
            for index, candidate in enumerate(candidates)
            for density, start, stop in _hull(candidate)
        ),
    )
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


def _better_even(
    candidates: Sequence[Candidate],
    ranks: Sequence[int],
    budget: int,
    exact_size: Callable[[Sequence[int]], int],
) -> list[int] | None:
    """Return one rank for all sites, and what still fits beside it, if that loses less than given ranks.

    Of a few sites with directions of unequal bytes, the densest may leave room that none of the others
    fits into. Of hundreds, one rank for all always loses more; then the exact size is asked once.
    """
    energies = [candidate.energies for candidate in candidates]
    lost = math.fsum(e for own, rank in zip(energies, ranks, strict=True) for e in own[rank:])
    better = lost * (1 - 1e-9)  # sums of equal numbers in another order are not better
    most = max(map(len, energies), default=0)
    left = [math.fsum(own[k] for own in energies if k < len(own)) for k in range(most)]
    found = None
    for rank in range(1, most):
        if math.fsum(left[rank:]) < better:
            even = [min(rank, len(own)) for own in energies]
            if exact_size(even) > budget:
                break
            found = even
    if found is not None:
        _fill(candidates, found, budget, exact_size)
    return found


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
