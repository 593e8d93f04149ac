"""Rounding as noise: how large it is, and what a spectrum says of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loramerge.algebra.leading import decompose_leading
from loramerge.algebra.noise import NoiseSums, noise_floor, noise_level, precision_of, spacing
from tests.builders.bases import STORAGE, ulp

Array = np.ndarray[Any, Any]
HALVES = ["F16", "BF16", "F8_E4M3", "F8_E5M2"]


def weights(shape: tuple[int, int], seed: int = 0) -> Array:
    return (0.05 * np.random.default_rng(seed).standard_normal(shape)).astype("float32")


def rounded(values: Array, dtype: str) -> Array:
    return values.astype(STORAGE[dtype]).astype("float32")


@pytest.mark.parametrize("dtype", [*HALVES, "F32"])
def test_spacing_is_the_distance_to_the_next_number(dtype: str) -> None:
    values = np.concatenate([weights((50, 1)), [[1.0], [-2.0], [0.75], [1e-7], [300.0]]])
    found = spacing(rounded(values, dtype), dtype)
    assert np.array_equal(found.astype("float64"), ulp(rounded(values, dtype), dtype))


def test_whole_numbers_lie_one_apart() -> None:
    assert (spacing(np.array([-7.0, 0.0, 3.0]), "I8") == 1).all()


@pytest.mark.parametrize("stored", ["F32", "F64"])
def test_widened_weights_are_known_by_their_bits(stored: str) -> None:
    values = weights((30, 30))
    assert precision_of(values, stored) == stored
    for dtype in ("F16", "BF16"):
        assert precision_of(rounded(values, dtype), stored) == dtype
    assert precision_of(rounded(values, "BF16"), "F16") == "BF16"
    assert precision_of(rounded(values, "F16"), "F16") == "F16"


@pytest.mark.parametrize("constant", [0.0, 1.0, -0.5])
def test_round_numbers_say_nothing_of_a_type(constant: float) -> None:
    """Norms are ones at first; that does not mean that changes below bfloat16 are rounding."""
    assert precision_of(np.full((20, 20), constant, "float32"), "F32") == "F32"


def sums_of(stored: Array, dtype: str) -> NoiseSums:
    found = NoiseSums.zeros(stored.shape)
    half = len(stored) // 2
    for start, rows in ((0, stored[:half]), (half, stored[half:])):
        found.add(start, spacing(rows, dtype) ** 2 / 12)
    return found


@pytest.mark.parametrize("rank", [None, 6])
@pytest.mark.parametrize("shape", [(90, 90), (80, 240), (240, 80)])
@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_alone_has_no_direction_above_the_floor(
    dtype: str, shape: tuple[int, int], rank: int | None
) -> None:
    before = weights(shape)
    after = rounded(before, dtype)
    sums = sums_of(after, dtype)
    found = decompose_leading(after - before, rank)
    assert noise_floor(found, sums) >= found.singular_values[0] >= 0.6 * sums.edge
    assert noise_level(found, shape) == pytest.approx(sums.energy, rel=0.25)


@pytest.mark.parametrize("rank", [None, 6])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_change_stands_out_of_rounding(dtype: str, rank: int | None) -> None:
    before, random = weights((90, 120)), np.random.default_rng(4)
    left, right = (np.linalg.qr(random.standard_normal((n, 2)))[0] for n in (90, 120))
    edge = sums_of(rounded(before, dtype), dtype).edge
    after = rounded(before + ((3 * edge * left) @ right.T).astype("float32"), dtype)
    found = decompose_leading(after - before, rank)
    floor = noise_floor(found, sums_of(after, dtype))
    assert (found.singular_values > floor).sum() == 2


def test_weights_rounded_before_they_were_tuned_carry_no_noise() -> None:
    """A small change of a bfloat16 base, kept in float32, is far below the rounding of the base."""
    base, random = rounded(weights((90, 120)), "BF16"), np.random.default_rng(4)
    change = (random.standard_normal((90, 2)) @ random.standard_normal((2, 120))) * 1e-6
    tuned = (base + change).astype("float32")
    sums = sums_of(base, "BF16")
    for rank in (None, 5):
        found = decompose_leading(tuned - base, rank)
        assert found.singular_values[0] < sums.edge
        assert (found.singular_values > noise_floor(found, sums)).sum() == 2


def test_without_rounding_there_is_no_floor() -> None:
    found = decompose_leading(weights((20, 30)), None)
    assert noise_floor(found, NoiseSums.zeros((20, 30))) == 0
