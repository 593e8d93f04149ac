"""Fast conversions of float16 give numpy's bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loramerge.files import halves
from tests.builders.deltas import rng

Array = np.ndarray[Any, Any]
EVERY = np.arange(1 << 16, dtype="u2").view("f2")


def same_bits(a: Array, b: Array) -> bool:
    """Compare two arrays to the bit; all NaN count as equal."""
    word = f"u{a.dtype.itemsize}"
    return bool((np.isnan(a) == np.isnan(b)).all()) and bool(
        (a[~np.isnan(a)].view(word) == b[~np.isnan(b)].view(word)).all()
    )


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_every_float16_becomes_the_same_float(kind: str) -> None:
    for values in (EVERY, EVERY[np.isfinite(EVERY)], EVERY[:1], EVERY[:0]):
        out = np.empty(len(values), kind)
        halves.widen(values, out)
        assert same_bits(out, values.astype(kind))


def borders(kind: str) -> Array:
    """Floats at every border between two float16, exactly and to either side, with both signs."""
    finite = np.sort(EVERY[np.isfinite(EVERY) & (EVERY >= 0)].astype("f8"))
    middle = (finite[1:] + finite[:-1]) / 2
    exact = np.concatenate([finite, middle]).astype(kind)
    up = np.nextafter(exact, np.array(np.inf, kind))
    down = np.nextafter(exact, np.array(-np.inf, kind))
    values = np.concatenate([exact, up, down])
    return np.concatenate([values, -values])


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_borders_and_random_numbers_round_as_numpy_rounds(kind: str) -> None:
    random = rng(0)
    many = (random.standard_normal(50_000) * 10.0 ** random.uniform(-9, 4, 50_000)).astype(kind)
    some = borders(kind)
    with np.errstate(over="ignore", invalid="ignore"):
        for values in (
            some[np.abs(some) < 32768], some, many, many[np.abs(many) < 1e-5], many[:1], many[:0],
            np.array([np.inf, -np.inf, np.nan, 65519.0, 65520.0, 1e30, 0.0, -0.0], kind),
        ):  # fmt: skip
            out, back = np.empty(len(values), "f2"), np.empty(len(values), kind)
            halves.round_floats(values, out, back)
            assert same_bits(out, values.astype("f2"))
            assert np.array_equal(back, out.astype(kind), equal_nan=True)


def test_what_cannot_compute_with_subnormals_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halves, "_exact", lambda: False)
    monkeypatch.setattr(halves, "_round", lambda *arrays: None)
    out = np.empty(len(EVERY), "f4")
    halves.widen(EVERY, out)
    assert same_bits(out, EVERY.astype("f4"))
    values, rounded = borders("f4"), np.empty(len(borders("f4")), "f2")
    halves.round_floats(values, rounded, np.empty_like(values))
    with np.errstate(over="ignore"):
        assert same_bits(rounded, values.astype("f2"))
