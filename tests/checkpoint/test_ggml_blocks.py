"""Blocks of ggml: extremes, halves, and what a change leaves in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from loramerge.checkpoint import ggml, ggml_arrays
from loramerge.checkpoint.ggml import BLOCK_TYPES
from loramerge.checkpoint.ggml_k import K_TYPES
from tests.builders.deltas import rng

Array = np.ndarray[Any, Any]
KINDS = BLOCK_TYPES | K_TYPES


def weights(kind: Any, seed: int) -> Array:
    """Blocks of weights, some of them zero, of one sign, or with the same number of both signs."""
    found = rng(seed).standard_normal((40, kind.elements)).astype("f4") * np.float32(0.02)
    found[:2], found[2, :16], found[3, ::2] = 0, 0, -0.0
    found[4], found[5] = np.abs(found[4]), -np.abs(found[5])
    found[6, 3:9], found[6, 9:12] = 0.5, -0.5
    return found


@pytest.mark.parametrize("random", [False, True], ids=["nearest", "at random"])
@pytest.mark.parametrize("name", KINDS)
def test_the_weights_of_changed_blocks_are_those_read_from_them(name: str, random: bool) -> None:
    kind = KINDS[name]
    before = kind.fresh(weights(kind, 0))
    after = kind.values(before) * np.float32(1.1) + weights(kind, 1)

    def draw() -> Callable[[Any], Any] | None:
        stream = rng(2)
        return (lambda shape: stream.random(shape, dtype=np.float32)) if random else None

    blocks, held = kind.replaced(before.copy(), after, draw())
    assert np.array_equal(blocks, kind.changed(before.copy(), after, draw()))
    assert np.array_equal(held, kind.values(blocks))
    assert not np.array_equal(blocks, before)


def test_scales_that_are_not_numbers_leave_no_other_weights() -> None:
    kind = BLOCK_TYPES["Q8_0"]
    tiny = np.full((2, 32), 1e-40, "f4")  # the inverse of its step is infinite
    with np.errstate(over="ignore", invalid="ignore"):
        blocks, held = kind.replaced(np.zeros((2, 34), np.uint8), tiny)
    assert np.array_equal(held, kind.values(blocks))


def wrong_codes() -> int:
    """Return how many codes of Q8_0 are not those of exact rounding, halves away from zero."""
    whole = np.arange(127, dtype="f4")
    half = whole + np.float32(0.5)
    steps = np.concatenate(
        [whole, half, *(np.nextafter(half, end) for end in np.float32([0, 127]))]
    )
    steps = np.concatenate([steps, -steps])
    values = np.full((len(steps), 32), 127, "f4")
    values[:, 1:] = steps[:, None]
    codes = BLOCK_TYPES["Q8_0"].fresh(values * np.float32(2.0**-7))[:, 2:].view(np.int8)
    right = np.trunc(steps.astype("f8") + np.copysign(0.5, steps))  # exact in float64
    return int((codes[:, 1:] != right[:, None]).sum())


def test_halves_are_rounded_away_from_zero() -> None:
    assert wrong_codes() == 0


@pytest.mark.parametrize("added", [0.5, 0.5 - 2.0**-24, 0.5 - 2.0**-23, 0.0])
def test_another_number_before_cutting_is_found(
    added: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ggml, "_BELOW_HALF", added)
    assert wrong_codes() > 0


def wrong_extremes(width: int) -> int:
    found = 0
    for count in (0, 1, 7):
        groups = rng(count).standard_normal((count, width)).astype("f4")
        for place in range(width):  # each place holds the extremes of some group
            for value in (9.0, -9.0, np.nan):
                some = groups.copy()
                some[::2, place] = value
                top, low = ggml_arrays.largest_of(some), ggml_arrays.smallest_of(some)
                size, far = ggml_arrays.largest_magnitudes(some), ggml_arrays.extreme_of(some)
                first = np.abs(some).argmax(axis=1)
                pairs = (
                    (top, some.max(axis=1)), (low, some.min(axis=1)),
                    (size, np.abs(some).max(axis=1)), (far, some[np.arange(count), first]),
                )  # fmt: skip
                found += sum(not np.array_equal(*pair, equal_nan=True) for pair in pairs)
    return found


@pytest.mark.parametrize("width", [16, 32])
def test_extremes_are_those_of_their_group(width: int) -> None:
    assert wrong_extremes(width) == 0


def test_extremes_of_a_group_and_its_neighbour_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    across = ggml_arrays._across

    def shifted(groups: Array, compare: Any) -> Array:
        return across(np.roll(groups.reshape(-1), 1).reshape(groups.shape), compare)

    monkeypatch.setattr(ggml_arrays, "_across", shifted)
    assert wrong_extremes(32) > 0


@pytest.mark.parametrize(("bits", "width"), [(4, 64), (4, 32), (4, 16), (4, 8), (2, 32), (2, 4)])
def test_codes_are_packed_and_unpacked(bits: int, width: int) -> None:
    each = 8 // bits
    codes = rng(0).integers(0, 1 << bits, (5, 2, each, width), dtype=np.uint8)
    shifts = np.arange(each, dtype=np.uint8).reshape(-1, 1) * np.uint8(bits)
    packed = np.bitwise_or.reduce(codes << shifts, axis=2).reshape(5, -1)
    flat = codes.reshape(5, -1)
    assert np.array_equal(ggml_arrays.joined(flat, bits, width), packed)
    assert np.array_equal(ggml_arrays.apart(packed, bits, width), flat)
    assert np.array_equal(ggml_arrays.apart(np.repeat(packed, 2, 1)[:, ::2], bits, width), flat)
