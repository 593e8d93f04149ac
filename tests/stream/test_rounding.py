from __future__ import annotations

import numpy as np
import pytest

from loramerge.errors import NumericsError
from loramerge.stream.rounding import Rounder, generator
from tests.builders.bases import STORAGE, Array, ulp

NARROW = ["F16", "BF16", "F8_E4M3", "F8_E5M2"]


def rounded(exact: Array, dtype: str, seed: int | None = None, name: str = "t") -> Array:
    out = np.empty(exact.shape, STORAGE[dtype])
    Rounder(dtype, name, seed).round(exact, out)
    return out


def values(dtype: str) -> Array:
    """Every finite value of the type, ascending, as float32."""
    kind = STORAGE[dtype]
    bits = np.arange(2 ** (8 * kind.itemsize), dtype=f"u{kind.itemsize}")
    found = bits.view(kind).astype("float32")
    return np.unique(found[np.isfinite(found)])


@pytest.mark.parametrize("dtype", NARROW)
def test_nearest(dtype: str) -> None:
    exact = np.random.default_rng(0).standard_normal(5000).astype("float32")
    assert np.array_equal(rounded(exact, dtype), exact.astype(STORAGE[dtype]))
    gap = np.abs(rounded(exact, dtype).astype("float64") - exact)
    assert (gap <= 0.5 * ulp(exact, dtype)).all()


@pytest.mark.parametrize("dtype", NARROW)
def test_only_the_two_neighbours_occur(dtype: str) -> None:
    grid = values(dtype)
    some = grid[:: max(1, len(grid) // 3000)]
    random = np.random.default_rng(1)
    index = np.searchsorted(grid, some[some < grid[-1]])
    low, high = grid[index].astype("float64"), grid[index + 1].astype("float64")
    exact = (low + random.random(len(low)) * (high - low)).astype("float32")
    for seed in range(20):
        got = rounded(exact, dtype, seed).astype("float64")
        assert ((got == low) | (got == high)).all()


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("share", [0.02, 0.25, 0.5, 0.9])
def test_the_expected_value_is_the_exact_one(dtype: str, share: float) -> None:
    grid, count = values(dtype), 40_000
    middle = np.searchsorted(grid, [1.0, -1.0, 0.0])
    picked = [*middle, *(middle - 1), np.searchsorted(grid, 100.0), 5, len(grid) - 9]
    for i in picked:
        low, high = float(grid[i]), float(grid[i + 1])
        exact = np.full(count, low + share * (high - low), "float32")
        got = rounded(exact, dtype, 3, f"t{i}").astype("float64")
        upper = (got == high).mean()
        real = (float(exact[0]) - low) / (high - low)
        assert set(np.unique(got)) <= {low, high}
        assert upper == pytest.approx(real, abs=5 * np.sqrt(real * (1 - real) / count) + 1e-4)


@pytest.mark.parametrize("dtype", NARROW)
def test_values_of_the_type_stay(dtype: str) -> None:
    grid = values(dtype)
    for seed in (None, 0, 1):
        assert np.array_equal(rounded(grid, dtype, seed).astype("float32"), grid)


@pytest.mark.parametrize("dtype", NARROW)
def test_below_the_smallest_value(dtype: str) -> None:
    grid = values(dtype)
    smallest = grid[grid > 0][0]
    for sign in (1.0, -1.0):
        exact = np.full(20_000, sign * 0.25 * smallest, "float32")
        got = rounded(exact, dtype, 5).astype("float64")
        assert set(np.unique(np.abs(got))) == {0.0, float(smallest)}
        assert got.mean() == pytest.approx(float(exact[0]), rel=0.1)


@pytest.mark.parametrize("dtype", NARROW)
def test_stochastic_rounding_never_gives_infinity(dtype: str) -> None:
    largest = values(dtype)[-1]
    for sign in (1.0, -1.0):
        exact = np.full(1000, sign * largest * (1 + 2.0**-12), "float32")
        got = rounded(exact, dtype, 1).astype("float32")
        assert (got == sign * largest).all()


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("seed", [None, 1])
def test_values_that_do_not_fit_are_refused(dtype: str, seed: int | None) -> None:
    for bad in (1e39, -1e39, np.nan, np.inf):
        with np.errstate(over="ignore"):
            exact = np.array([0.5, bad]).astype("float32")
        rounder = Rounder(dtype, "unet.x", seed)
        out = np.empty(2, STORAGE[dtype])
        rounder.round(exact, out)
        with pytest.raises(NumericsError) as caught:
            rounder.check(out.astype("float32"), exact)
        assert caught.value.module == "unet.x"


def test_large_sums_of_finite_values_are_fine() -> None:
    large = np.full(10, 3e38, "float32")
    Rounder("F32", "t", None).check(large, large)


def test_wide_types_are_not_random() -> None:
    exact = np.random.default_rng(0).standard_normal(100)
    single = exact.astype("float32")
    assert np.array_equal(rounded(single, "F32", 1), single)
    assert np.array_equal(rounded(exact, "F64", 1), exact)
    # float64 → float32 is a rounding
    assert not np.array_equal(rounded(exact, "F32", 1), single)
    mean = np.mean([rounded(exact, "F32", s).astype("float64") for s in range(400)], axis=0)
    assert (np.abs(mean - exact) <= 0.25 * ulp(exact, "F32")).all()


def test_seed_and_name_choose_the_stream() -> None:
    exact = np.random.default_rng(0).standard_normal(1000).astype("float32")
    first = rounded(exact, "BF16", 1, "a")
    assert np.array_equal(first, rounded(exact, "BF16", 1, "a"))
    assert not np.array_equal(first, rounded(exact, "BF16", 2, "a"))
    assert not np.array_equal(first, rounded(exact, "BF16", 1, "b"))
    assert generator(1, "a").random() == generator(1, "a").random()


def test_blocks_go_on_in_the_stream() -> None:
    exact = np.full(1000, 1.001, "float32")
    rounder, out = Rounder("BF16", "a", 1), np.empty((2, 1000), STORAGE["BF16"])
    rounder.round(exact, out[0])
    rounder.round(exact, out[1])
    assert not np.array_equal(out[0], out[1])
