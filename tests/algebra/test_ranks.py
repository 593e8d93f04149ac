from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramerge.algebra.allocation import Candidate, ranks_for_error, ranks_for_size
from loramerge.algebra.ranks import RankRule, check_errors, site_rank
from loramerge.errors import NumericsError, UsageError

quick = settings(max_examples=60, database=None, derandomize=True)


def kept(singular_values: Sequence[float], rule: RankRule, kernel: int = 1) -> int:
    s = np.array(singular_values)
    return site_rank(s, rule, kernel, len(s))


# ---- one site


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (RankRule(energy=16 / 21), 1),
        (RankRule(energy=16 / 21 + 1e-6), 2),
        (RankRule(energy=20 / 21), 2),
        (RankRule(energy=20 / 21 + 1e-6), 3),
        (RankRule(energy=1.0), 3),
        (RankRule(energy=1e-9), 1),
        (RankRule(cumulative=4 / 7), 1),
        (RankRule(cumulative=4 / 7 + 1e-6), 2),
        (RankRule(cumulative=6 / 7), 2),
        (RankRule(cumulative=1.0), 3),
        (RankRule(ratio=1.5), 1),
        (RankRule(ratio=2.0), 1),  # strictly above σ₀ / ratio
        (RankRule(ratio=2.001), 2),
        (RankRule(ratio=4.0), 2),
        (RankRule(ratio=5.0), 3),
        (RankRule(rank=2), 2),
        (RankRule(rank=9), 3),
        (RankRule(rank=1, energy=1.0), 1),
        (RankRule(rank=3, energy=16 / 21), 1),
        (RankRule(energy=20 / 21, ratio=1.5, cumulative=1.0), 1),
        (RankRule(conv_rank=1), 3),
        (RankRule(), 3),
    ],
    ids=str,
)
def test_values_by_hand(rule: RankRule, expected: int) -> None:
    assert kept([4.0, 2.0, 1.0], rule) == expected


@pytest.mark.parametrize(
    ("rule", "linear", "kernel"),
    [
        (RankRule(rank=2), 2, 2),
        (RankRule(rank=2, conv_rank=1), 2, 1),
        (RankRule(rank=1, conv_rank=3), 1, 3),
        (RankRule(conv_rank=1), 3, 1),
    ],
)
def test_conv_rank_is_for_kernels(rule: RankRule, linear: int, kernel: int) -> None:
    assert kept([4.0, 2.0, 1.0], rule, 1) == linear
    assert kept([4.0, 2.0, 1.0], rule, 9) == kernel


spectra = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9).map(
    lambda s: sorted(s, reverse=True)
)


@quick
@given(spectra, st.floats(0.01, 1.0))
def test_shares_are_minimal(s: list[float], share: float) -> None:
    for rule, power in ((RankRule(energy=share), 2), (RankRule(cumulative=share), 1)):
        k = kept(s, rule)
        total = math.fsum(v**power for v in s)
        parts = [math.fsum(v**power for v in s[:j]) / total for j in range(len(s) + 1)]
        assert parts[k] >= share - 1e-9
        assert k == 1 or parts[k - 1] < share + 1e-9


@quick
@given(spectra, st.floats(1.01, 1e4))
def test_ratio_keeps_what_is_above(s: list[float], ratio: float) -> None:
    assert kept(s, RankRule(ratio=ratio)) == sum(v > s[0] / ratio for v in s)


@quick
@given(spectra, st.integers(1, 9), st.floats(0.01, 1.0), st.floats(1.01, 1e3))
def test_together_the_smallest_wins(s: list[float], rank: int, share: float, ratio: float) -> None:
    alone = [
        kept(s, RankRule(rank=rank)),
        kept(s, RankRule(energy=share)),
        kept(s, RankRule(cumulative=share)),
        kept(s, RankRule(ratio=ratio)),
    ]
    assert kept(s, RankRule(rank=rank, energy=share, cumulative=share, ratio=ratio)) == min(alone)


def test_shares_forgive_the_rounding_of_sums() -> None:
    s = np.full(1000, 0.1)
    assert site_rank(s, RankRule(energy=0.5), 1, 1000) == 500
    assert site_rank(s, RankRule(cumulative=0.3), 1, 1000) == 300


def test_never_above_the_numerical_rank() -> None:
    s = np.array([1.0, 0.5, 1e-12])
    assert site_rank(s, RankRule(rank=3), 1, 2) == 2
    assert site_rank(s, RankRule(energy=1.0), 1, 2) == 2
    assert site_rank(s, RankRule(rank=3), 1, 0) == 0
    assert site_rank(np.zeros(0), RankRule(ratio=2.0), 1, 0) == 0


@pytest.mark.parametrize(
    "values",
    [
        {"energy": 0.0}, {"energy": 1.1}, {"cumulative": -0.5}, {"max_error": 0.0},
        {"max_error": math.nan}, {"max_module_error": 2.0}, {"ratio": 1.0}, {"ratio": math.nan},
        {"rank": 0}, {"conv_rank": -1},
    ],
    ids=str,
)  # fmt: skip
def test_bad_values_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        RankRule(**values)  # type: ignore[arg-type]


def test_rules_that_truncate_and_rules_that_choose_by_error() -> None:
    assert not RankRule().truncates
    assert not RankRule(max_module_error=0.1).truncates
    assert RankRule(max_error=0.1).error_chooses
    assert not RankRule(max_error=0.1, rank=3).error_chooses
    assert not RankRule(max_error=0.1, max_size=3).error_chooses


# ---- over all sites: size


def energies(s: Sequence[float]) -> list[float]:
    return sorted((v * v for v in s), reverse=True)


def additive(candidates: Sequence[Candidate], fixed: int = 0) -> Callable[[Sequence[int]], int]:
    return lambda ranks: (
        fixed
        + sum(
            k * c.direction + (c.first if k else 0) for k, c in zip(ranks, candidates, strict=True)
        )
    )


def lost(candidates: Sequence[Candidate], ranks: Sequence[int]) -> float:
    return math.fsum(e for c, k in zip(candidates, ranks, strict=True) for e in c.energies[k:])


def every_choice(candidates: Sequence[Candidate]) -> itertools.product[tuple[int, ...]]:
    return itertools.product(*(range(len(c.energies) + 1) for c in candidates))


def least_lost(candidates: Sequence[Candidate], budget: int) -> float:
    size = additive(candidates)
    return min(lost(candidates, r) for r in every_choice(candidates) if size(r) <= budget)


def relaxed_lost(candidates: Sequence[Candidate], budget: int) -> float:
    """The optimum of the linear relaxation, by its dual: max over λ ≥ 0 of a piecewise line."""
    points = [
        [(0, 0.0)]
        + [
            (c.first + k * c.direction, math.fsum(c.energies[:k]))
            for k in range(1, len(c.energies) + 1)
        ]
        for c in candidates
    ]
    breaks = {0.0} | {
        (g2 - g1) / (c2 - c1)
        for site in points
        for (c1, g1), (c2, g2) in itertools.combinations(site, 2)
    }
    best = min(
        price * budget + sum(max(g - price * c for c, g in site) for site in points)
        for price in breaks
        if price >= 0
    )
    return lost(candidates, [0] * len(candidates)) - best


@st.composite
def candidates(draw: st.DrawFn, *, equal: bool = False, first: int = 0) -> list[Candidate]:
    count = draw(st.integers(1, 4))
    values = st.one_of(st.floats(0.01, 10.0), st.sampled_from([1.0, 2.0, 3.0]))
    return [
        Candidate(
            energies(draw(st.lists(values, min_size=1, max_size=5))),
            10 if equal else draw(st.integers(3, 40)),
            draw(st.integers(0, first)),
        )
        for _ in range(count)
    ]


@quick
@given(candidates(equal=True), st.integers(0, 220))
def test_equal_costs_reach_the_optimum(found: list[Candidate], budget: int) -> None:
    ranks = ranks_for_size(found, budget, additive(found))
    assert additive(found)(ranks) <= budget
    assert lost(found, ranks) == pytest.approx(least_lost(found, budget), rel=1e-9, abs=1e-12)


@quick
@given(candidates(), st.integers(0, 400))
def test_at_most_one_direction_above_the_relaxed_optimum(
    found: list[Candidate], budget: int
) -> None:
    ranks = ranks_for_size(found, budget, additive(found))
    bound = relaxed_lost(found, budget)
    assert bound <= least_lost(found, budget) + 1e-9
    assert lost(found, ranks) <= bound + max(c.energies[0] for c in found) + 1e-9


@quick
@given(candidates(first=60), st.integers(0, 600))
def test_header_costs_count_as_part_of_the_first_direction(
    found: list[Candidate], budget: int
) -> None:
    ranks = ranks_for_size(found, budget, additive(found))
    assert additive(found)(ranks) <= budget
    one = max(c.energies[0] * (1 + c.first / c.direction) for c in found)
    assert lost(found, ranks) <= relaxed_lost(found, budget) + one + 1e-9


@quick
@given(candidates(first=60), st.integers(0, 600), st.integers(1, 40))
def test_never_above_the_budget_with_awkward_headers(
    found: list[Candidate], budget: int, step: int
) -> None:
    def exact(ranks: Sequence[int]) -> int:
        # what no estimate knows: digits of the ranks, names of unequal length, padding
        head = sum(len(str(k)) * 3 + 17 * i for i, k in enumerate(ranks) if k)
        return -(-(additive(found, 5)(ranks) + head) // step) * step

    if exact([0] * len(found)) > budget:
        with pytest.raises(UsageError, match="cannot be that small"):
            ranks_for_size(found, budget, exact)
        return
    ranks = ranks_for_size(found, budget, exact)
    assert exact(ranks) <= budget
    # and nothing that would still fit is left out
    for i, candidate in enumerate(found):
        if ranks[i] < len(candidate.energies):
            more = [k + (j == i) for j, k in enumerate(ranks)]
            assert exact(more) > budget


def test_equal_directions_are_taken_one_by_one() -> None:
    """A flat spectrum is one step of the hull; where it does not fit whole, most of it does."""
    flat, weak = Candidate([1.0] * 100, 10, 0), Candidate([1e-3] * 99, 10, 0)
    assert ranks_for_size([flat, weak], 995, additive([flat, weak])) == [99, 0]
    headed = [Candidate([1.0] * 100, 10, 5), Candidate([1e-3] * 99, 10, 5)]
    assert ranks_for_size(headed, 995, additive(headed)) == [99, 0]


def test_everything_fits() -> None:
    found = [Candidate([4.0, 1.0], 10, 3), Candidate([2.0], 20, 3)]
    assert ranks_for_size(found, 46, additive(found)) == [2, 1]
    assert ranks_for_size(found, 45, additive(found)) == [
        1,
        1,
    ]  # what [2, 0] loses is twice as much
    assert ranks_for_size(found, 0, additive(found)) == [0, 0]
    assert ranks_for_size([], 10, lambda _: 7) == []


def test_a_size_below_the_uncuttable_tensors_is_refused_with_their_size() -> None:
    with pytest.raises(UsageError, match="cannot be that small") as caught:
        ranks_for_size([Candidate([1.0], 10, 0)], 1_000_000, lambda _: 2_500_000)
    assert caught.value.expected == "at least 2,500,000 bytes"


def test_real_sizes_are_quick() -> None:
    random = np.random.default_rng(0)
    found = [
        Candidate(energies(random.random(64) * random.random()), int(d), 300)
        for d in random.integers(640, 20000, 800)
    ]
    calls = 0
    plain = additive(found, 5000)

    def exact(ranks: Sequence[int]) -> int:
        nonlocal calls
        calls += 1
        return plain(ranks)

    budget = exact([64] * 800) // 4
    ranks = ranks_for_size(found, budget, exact)
    assert budget - 20000 < plain(ranks) <= budget
    assert calls < 3000


# ---- over all sites: error


def errors(found: Sequence[Candidate], ranks: Sequence[int]) -> float:
    return math.sqrt(lost(found, ranks) / lost(found, [0] * len(found)))


@quick
@given(candidates(), st.floats(0.01, 1.0))
def test_the_error_is_kept_and_no_direction_is_needless(
    found: list[Candidate], limit: float
) -> None:
    energy = lost(found, [0] * len(found))
    ranks = ranks_for_error(found, energy, limit)
    assert errors(found, ranks) <= limit * (1 + 1e-9)
    for i, k in enumerate(ranks):
        if k:
            fewer = [j - (m == i) for m, j in enumerate(ranks)]
            assert errors(found, fewer) > limit * (1 - 1e-9)


@quick
@given(candidates(), st.floats(0.01, 1.0))
def test_the_error_costs_at_most_a_direction_more_than_the_optimum(
    found: list[Candidate], limit: float
) -> None:
    energy, size = lost(found, [0] * len(found)), additive(found)
    best = min(size(r) for r in every_choice(found) if errors(found, r) <= limit)
    ranks = ranks_for_error(found, energy, limit)
    assert size(ranks) <= best + max(c.direction for c in found)


@quick
@given(candidates(equal=True), st.floats(0.01, 1.0))
def test_equal_costs_reach_the_optimum_for_an_error(found: list[Candidate], limit: float) -> None:
    energy, size = lost(found, [0] * len(found)), additive(found)
    best = min(size(r) for r in every_choice(found) if errors(found, r) <= limit * (1 - 1e-9))
    assert size(ranks_for_error(found, energy, limit)) <= best


def test_energy_that_is_not_cut_counts() -> None:
    found = [Candidate([1.0, 1.0], 10, 0)]
    assert ranks_for_error(found, 2.0, 0.5) == [2]
    assert ranks_for_error(found, 4.0, 0.5) == [1]
    assert ranks_for_error(found, 8.0, 0.5) == [0]


# ---- refusals


def test_refusals() -> None:
    check_errors(RankRule(), 0.9, ("m", 0.9))
    check_errors(RankRule(max_error=0.5, max_module_error=0.6), 0.5, ("m", 0.6))
    with pytest.raises(NumericsError, match="limit max_error") as caught:
        check_errors(RankRule(max_error=0.5), 0.51, None)
    assert (caught.value.expected, caught.value.found) == ("≤ 0.5", "0.51")
    with pytest.raises(NumericsError, match="limit max_module_error") as caught:
        check_errors(RankRule(max_module_error=0.5), 0.1, ("unet.x", 0.6))
    assert caught.value.module == "unet.x"


# ---- over all sites: how often the exact size is asked


def patient_fill(
    found: Sequence[Candidate],
    ranks: list[int],
    budget: int,
    exact: Callable[[Sequence[int]], int],
) -> None:
    """Do as `_fill`, asking the exact size at every step."""

    def density(i: int, rank: int) -> float:
        return found[i].energies[rank] / found[i].direction

    while exact(ranks) > budget:
        ranks[
            min((i for i, k in enumerate(ranks) if k), key=lambda i: density(i, ranks[i] - 1))
        ] -= 1
    left = {i for i, c in enumerate(found) if ranks[i] < len(c.energies)}
    while left:
        i = min(left, key=lambda i: (-density(i, ranks[i]), i))
        ranks[i] += 1
        if exact(ranks) > budget:
            ranks[i] -= 1
            left.remove(i)
        elif ranks[i] == len(found[i].energies):
            left.remove(i)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.97])
def test_thousands_of_modules_alike_are_asked_for_a_few_times(share: float) -> None:
    random = np.random.default_rng(1)
    found = [Candidate(energies(random.random(4)), 128, 300) for _ in range(3000)]
    calls = 0

    def exact(ranks: Sequence[int]) -> int:
        nonlocal calls
        calls += 1
        digits = sum(3 * len(str(k)) + 290 for k in ranks if k)
        return -(-(128 * sum(ranks) + digits) // 8) * 8 + 40

    budget = int(share * exact([4] * 3000))
    ranks = ranks_for_size(found, budget, exact)
    assert calls < 60
    assert budget - 400 < exact(ranks) <= budget


def test_asking_seldom_gives_what_asking_always_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    for _ in range(100):
        found = [
            Candidate(energies(random.random(int(n))), 16 * int(d), 60)
            for n, d in zip(random.integers(1, 12, 12), random.integers(1, 9, 12), strict=True)
        ]
        plain = additive([Candidate(c.energies, c.direction, 0) for c in found])

        def exact(ranks: Sequence[int], plain: Callable[[Sequence[int]], int] = plain) -> int:
            return -(-(plain(ranks) + sum(len(str(k)) + 54 for k in ranks if k)) // 8) * 8

        budget = int(random.uniform(0.1, 1.1) * exact([len(c.energies) for c in found]))
        quick = ranks_for_size(found, budget, exact)
        with monkeypatch.context() as patch:
            patch.setattr("loramerge.algebra.allocation._fill", patient_fill)
            assert quick == ranks_for_size(found, budget, exact)
