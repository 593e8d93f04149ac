from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from loramerge.algebra.laws import LAWS
from loramerge.algebra.operators import OPERATORS, find_operator
from tests.laws import laws, wrong
from tests.tail import tail


def claims() -> Iterator[Any]:
    """Yield (operator, law): all of the sum, the first of each operator, and the long tail."""
    for one in OPERATORS.shipped():
        for law in one.laws:
            core = one.is_sum or law == one.laws[0]
            yield pytest.param(one.name, law) if core else tail(one.name, law)


@pytest.mark.parametrize(("operator", "law"), list(claims()), ids=str)
def test_operators_hold_what_they_claim(operator: str, law: str) -> None:
    laws.MIX_LAWS[law](laws.OfOperator(find_operator(operator)))


NOT_OF_SUMS = {"duplicates", "expectation", "seeds"}  # of means, and of random draws


def test_the_sum_claims_every_law_of_sums() -> None:
    assert set(find_operator("linear").laws) == set(LAWS) - NOT_OF_SUMS
    assert set(LAWS) == set(laws.MIX_LAWS)


def test_every_law_is_claimed() -> None:
    assert {law for one in OPERATORS.shipped() for law in one.laws} == set(LAWS)


@pytest.mark.parametrize(
    ("law", "implementation"),
    [
        (laws.mix_agrees_with_the_dense_oracle, wrong.ratio_on_both_factors),
        (laws.mix_agrees_with_the_dense_oracle, wrong.factors_added),
        (laws.mix_agrees_with_the_dense_oracle, wrong.first_alpha),
        (laws.mix_agrees_with_the_dense_oracle, wrong.double_scale),
        (laws.mix_agrees_with_the_dense_oracle, wrong.sign_lost),
        (laws.mix_agrees_with_the_dense_oracle, wrong.clamped),
        (laws.mix_agrees_with_the_dense_oracle, wrong.last_sites_only),
        (laws.mix_is_invariant_to_the_gauge, wrong.factors_added),
        (laws.mix_is_invariant_to_the_gauge, wrong.clamped),
        (laws.mix_is_homogeneous, wrong.ratio_on_both_factors),
        (laws.mix_is_homogeneous, wrong.sign_lost),
        (laws.mix_ignores_the_order_of_inputs, wrong.first_alpha),
        (laws.mix_ignores_the_order_of_inputs, wrong.last_sites_only),
        (laws.weight_zero_is_neutral, wrong.zero_counts),
        (laws.halves_make_a_whole, wrong.ratio_on_both_factors),
        (laws.halves_make_a_whole, wrong.first_alpha),
        (laws.halves_make_a_whole, wrong.double_scale),
        (laws.halves_make_a_whole, wrong.clamped),
        (laws.mix_is_linear, wrong.ratio_on_both_factors),
        (laws.mix_is_linear, wrong.factors_added),
        (laws.mix_is_linear, wrong.sign_lost),
        (laws.copies_count_once, wrong.ours_mix),
        (laws.a_negative_weight_turns_its_adapter, wrong.sign_lost),
        (laws.what_does_not_meet_is_added, wrong.ratio_on_both_factors),
        (laws.what_does_not_meet_is_added, wrong.sign_lost),
        (laws.what_does_not_meet_is_added, wrong.pruned),
        (laws.the_mean_over_seeds_is_the_sum, wrong.Unscaled()),
        (laws.a_seed_chooses, wrong.SeedIgnored()),
        (laws.a_seed_chooses, wrong.unseeded),
        (laws.opposites_cancel, wrong.ratio_on_both_factors),
        (laws.opposites_cancel, wrong.sign_lost),
        (laws.mix_has_the_numerical_rank, wrong.ranks_added),
        (laws.a_site_of_one_adapter_is_weighted, wrong.zero_counts),
        (laws.a_site_of_one_adapter_is_weighted, wrong.last_sites_only),
        (laws.mix_commutes_with_rotations, wrong.clamped),
        (laws.mix_commutes_with_rotations, wrong.pruned),
        (laws.mix_keeps_to_the_rank_bound, wrong.one_rank_too_many),
        (laws.mix_repeats_to_the_byte, wrong.unseeded),
        (laws.mix_repeats_to_the_byte, wrong.SharedGenerator()),
    ],
    ids=lambda f: getattr(f, "__name__", type(f).__name__),
)
def test_the_law_finds_the_error(law: Any, implementation: Any) -> None:
    with pytest.raises(AssertionError):
        law(implementation)


def test_every_law_has_a_wrong_implementation_that_breaks_it() -> None:
    (marks,) = test_the_law_finds_the_error.pytestmark  # type: ignore[attr-defined]
    assert {law for law, _ in marks.args[1]} == set(laws.MIX_LAWS.values())
