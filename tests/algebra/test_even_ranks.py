"""Ranks chosen for a size never lose more than one rank for all modules, in as many bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loramerge.adapter import Adapter
from loramerge.algebra import allocation
from loramerge.algebra.allocation import Candidate, ranks_for_size
from loramerge.steps.parameters import Context
from loramerge.steps.references import Reference
from loramerge.verbs.resize.curve import compute_curve
from loramerge.verbs.resize.parameters import Resize
from tests.algebra.test_ranks import additive, candidates, least_lost, lost, quick
from tests.builders.deltas import adapter, low_rank

# in 112 bytes rank 2 for all loses 4; by density ranks 3, 1, 3 are taken, which lose 8
AWKWARD = [
    Candidate([8.0, 5.0, 1.0], 12, 8),
    Candidate([7.0, 6.0, 2.0], 28, 8),
    Candidate([7.0, 3.0, 1.0], 4, 8),
]


def by_density_alone(
    found: Sequence[Candidate], budget: int, patch: pytest.MonkeyPatch
) -> list[int]:
    """The former choice: the best step for its size; one rank for all is not tried."""
    with patch.context() as context:
        context.setattr(allocation, "_better_even", lambda *_: None)
        return ranks_for_size(found, budget, additive(found))


def check_even(found: Sequence[Candidate], ranks: Sequence[int], budget: int) -> None:
    """The law: every rank for all that fits loses as much or more."""
    size = additive(found)
    assert size(ranks) <= budget
    for rank in range(max(len(one.energies) for one in found) + 1):
        even = [min(rank, len(one.energies)) for one in found]
        if size(even) <= budget:
            assert lost(found, ranks) <= lost(found, even) * (1 + 1e-8)


@quick
@example(AWKWARD, 2)
@given(candidates(first=60), st.integers(1, 5))
def test_at_the_size_of_one_rank_no_more_is_lost(found: list[Candidate], rank: int) -> None:
    budget = additive(found)([min(rank, len(one.energies)) for one in found])
    check_even(found, ranks_for_size(found, budget, additive(found)), budget)


@quick
@given(candidates(first=60), st.integers(0, 600))
def test_at_any_size_no_more_is_lost(found: list[Candidate], budget: int) -> None:
    check_even(found, ranks_for_size(found, budget, additive(found)), budget)


def test_density_alone_fails_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = additive(AWKWARD)([2, 2, 2])
    ranks = by_density_alone(AWKWARD, budget, monkeypatch)
    assert ranks == [3, 1, 3]
    with pytest.raises(AssertionError):
        check_even(AWKWARD, ranks, budget)


def test_the_best_of_all_choices_is_found() -> None:
    budget = additive(AWKWARD)([2, 2, 2])
    ranks = ranks_for_size(AWKWARD, budget, additive(AWKWARD))
    assert lost(AWKWARD, ranks) == least_lost(AWKWARD, budget) == 4.0


@quick
@given(candidates(first=60), st.integers(0, 600))
def test_it_is_between_the_best_choice_and_density_alone(
    found: list[Candidate], budget: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        before = by_density_alone(found, budget, patch)
    now = lost(found, ranks_for_size(found, budget, additive(found)))
    assert least_lost(found, budget) <= now + 1e-9
    assert now <= lost(found, before) * (1 + 1e-8)


# ---- files


def three_modules(seed: int) -> Adapter:
    shapes = {"unet.one": (40, 6), "unet.two": (9, 12), "unet.three": (5, 24)}
    return adapter(
        {name: low_rank(shape, 5, seed + n) for n, (name, shape) in enumerate(shapes.items())}
    )


def worse_points(seed: int) -> list[float]:
    """Points of a curve at which the best ranks lose more than one rank for all, and by how much."""
    one = three_modules(seed)
    found = compute_curve(
        Resize(adapter=Reference("one"), to="kohya"),
        (1, 2, 3, 4),
        (),
        replace(Context(), known={"one": one}),
    )
    pairs = [
        (best.relative_error, even.relative_error)
        for even, best in zip(found.uniform, found.best, strict=True)
    ]
    return [best - even for best, even in pairs if best > even * (1 + 1e-8)]


SEEDS = range(12)


def test_curves_of_three_modules_never_cross() -> None:
    assert [worse for seed in SEEDS for worse in worse_points(seed)] == []


def test_they_crossed_by_density_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "_better_even", lambda *_: None)
    assert any(worse_points(seed) for seed in SEEDS)
