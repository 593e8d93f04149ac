"""The k-th largest number is exact, and one pass finds it where numbers do not drift."""

import numpy as np
import pytest

from loramerge.algebra import kth_largest
from loramerge.algebra.kth_largest import Search

RNG = np.random.default_rng(7)
NORMAL = np.abs(RNG.standard_normal(20_000))
NUMBERS = {
    "normal": NORMAL,
    "rising": np.sort(NORMAL),
    "falling": np.sort(NORMAL)[::-1],
    "rows of other sizes": NORMAL * np.repeat(RNG.uniform(0.1, 9, 100), 200),
    "many equal": RNG.integers(0, 3, 20_000).astype(float),
    "zeros": np.zeros(20_000),
    "one is not zero": np.eye(1, 20_000, 77)[0],
    "tiny and huge": np.concatenate([NORMAL * 1e-38, NORMAL * 1e30]),
    "infinity": np.where(NORMAL > 3, np.inf, NORMAL),
}


@pytest.fixture(autouse=True)
def _few_are_held(monkeypatch):
    monkeypatch.setattr(kth_largest, "_HELD", 400)
    monkeypatch.setattr(kth_largest, "_MOST", 1200)


def found(numbers, count, block=150):
    """Return the number, and the passes that it took."""
    search = Search(count, len(numbers))
    for passes in range(1, 9):
        for start in range(0, len(numbers), block):
            search.take(numbers[start : start + block])
        if search.is_done():
            return search.value, passes
    raise AssertionError("too many passes")


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("numbers", NUMBERS)
def test_it_is_the_number_that_sorting_gives(numbers, kind):
    values = NUMBERS[numbers].astype(kind)
    ordered = np.sort(values)[::-1]
    for count in (1, 2, 4_000, 6_001, len(values) - 1, len(values)):
        assert found(values, count)[0] == ordered[count - 1]


def test_one_pass_is_enough_for_numbers_that_do_not_drift():
    passes = [found(NORMAL.astype("float32"), count)[1] for count in range(200, 19_800, 700)]
    assert passes.count(1) >= 0.9 * len(passes)


def test_numbers_that_drift_take_three_passes():
    assert {found(NUMBERS["rising"].astype("float32"), count)[1] for count in (9, 4_000)} <= {2, 3}


@pytest.mark.parametrize("size", [1, 2, 399, 401])
def test_few_numbers_are_held_whole(size):
    values = NORMAL[:size].astype("float32")
    assert found(values, 1) == (values.max(), 1)
    assert found(values, size) == (values.min(), 1)


def test_not_counting_what_lies_above_would_be_seen(monkeypatch):
    monkeypatch.setattr(np, "count_nonzero", lambda _: 0)
    with pytest.raises(AssertionError):
        assert (
            found(NORMAL.astype("float32"), 6_001)[0] == np.sort(NORMAL.astype("float32"))[-6_001]
        )


def searched(values, count, drawn, block=150):
    """Return the search, and its passes until the number was found."""
    search = Search(count, len(values))
    search.expect(drawn)
    for passes in range(1, 9):
        for start in range(0, len(values), block):
            search.take(values[start : start + block])
        if search.is_done():
            return search, passes
    raise AssertionError("too many passes")


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("count", [1, 6_001, 19_999])
def test_drawn_numbers_spare_passes_and_change_nothing(numbers, count):
    values = NUMBERS[numbers].astype("float32")
    search, passes = searched(values, count, values[::37])
    assert search.value == np.sort(values)[::-1][count - 1]
    assert passes == 1 or len(values) > 20_000  # of more, not all around the place may be held


def test_drawn_numbers_that_mislead_cost_passes_alone():
    values = NUMBERS["rising"].astype("float32")
    search, passes = searched(values, 6_001, values[:500])
    assert search.value == np.sort(values)[-6_001]
    assert passes > 1


@pytest.mark.parametrize("numbers", ["many equal", "zeros"])
@pytest.mark.parametrize("draws", [False, True])
def test_equal_numbers_are_held_once(numbers, draws):
    values = NUMBERS[numbers]
    search = Search(6_001, len(values))
    if draws:
        search.expect(values[::37])
    held = []
    for start in range(0, len(values), 150):
        search.take(values[start : start + 150])
        held.append(search._pass.length)
    assert max(held) <= 2400
    assert search.is_done()
    assert search.value == np.sort(values)[-6_001]
