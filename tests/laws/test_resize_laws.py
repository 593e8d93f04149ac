from __future__ import annotations

from typing import Any

import pytest

from tests.laws import laws, wrong


@pytest.mark.parametrize("law", laws.RESIZE_LAWS, ids=lambda law: law.__name__)
def test_ours_holds(law: Any) -> None:
    law(wrong.ours_resize)


@pytest.mark.parametrize(
    ("law", "implementation"),
    [
        (laws.resize_is_optimal, wrong.first_columns),
        (laws.resize_is_optimal, wrong.one_too_many),
        (laws.resize_is_optimal, wrong.scale_twice),
        (laws.resize_is_optimal, wrong.quantile),
        (laws.resize_is_optimal, wrong.singular_values_squared),
        (laws.resize_keeps_to_the_rank, wrong.one_too_many),
        (laws.resize_keeps_to_the_rank, wrong.always_that_rank),
        (laws.resize_is_idempotent, wrong.quantile),
        (laws.resize_is_idempotent, wrong.keeps_shrinking),
        (laws.resize_is_invariant_to_the_gauge, wrong.first_columns),
        (laws.resize_is_homogeneous, wrong.scale_twice),
        (laws.resize_is_homogeneous, wrong.singular_values_squared),
        (laws.resize_is_homogeneous, wrong.magnitudes_only),
        (laws.resize_commutes_with_transposition, wrong.one_side_only),
        (laws.resize_is_optimal, wrong.one_side_only),
    ],
    ids=lambda f: f.__name__,
)
def test_the_law_finds_the_error(law: Any, implementation: Any) -> None:
    with pytest.raises(AssertionError):
        law(implementation)


def test_every_law_has_a_wrong_implementation_that_breaks_it() -> None:
    (marks,) = test_the_law_finds_the_error.pytestmark  # type: ignore[attr-defined]
    assert {law for law, _ in marks.args[1]} == set(laws.RESIZE_LAWS)
