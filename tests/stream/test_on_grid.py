"""Changes moved onto the numbers of a storage: what rounding to nearest would lose is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import loramerge as lm
from loramerge.cli.main import main
from loramerge.errors import UsageError
from loramerge.files.halves import round_floats, widen
from loramerge.stream.on_grid import WAYS, moved_onto, spacing
from tests.stream.test_kept_wider import weak


def change(size: float) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    asked = (random.standard_normal((64, 2)) @ random.standard_normal((2, 512)) * size).astype("f4")
    return asked, np.where(np.arange(512) < 256, 1.0, 0.5).astype("f4") * np.ones_like(asked)


def share(found: Any, asked: Any) -> float:
    return float((found * asked).sum() / (asked**2).sum())


@pytest.mark.parametrize("way", WAYS)
def test_weak_changes_are_kept_in_whole_steps(way: str) -> None:
    asked, steps = change(0.08)
    found = moved_onto(way, asked, steps)
    assert np.array_equal(np.rint(found / steps), found / steps)
    assert share(np.rint(asked / steps) * steps, asked) < 0.3
    assert share(found, asked) == pytest.approx(1, abs=0.04)


def test_feedback_keeps_the_sums_of_steps_along_rows() -> None:
    asked, steps = change(0.08)
    rest = np.cumsum((moved_onto("feedback", asked, steps) - asked) / steps, axis=1)
    assert np.abs(rest).max() <= 1 + 1e-3  # of the first error, and the last


def test_balanced_has_less_noise_than_chance() -> None:
    asked, steps = change(0.08)
    chance = np.floor(asked / steps + np.random.default_rng(1).random(asked.shape)) * steps
    errors = [
        float(((x - asked) ** 2).sum()) for x in (moved_onto("balanced", asked, steps), chance)
    ]
    assert errors[0] < 0.6 * errors[1]


def test_strong_changes_are_those_to_nearest() -> None:
    asked, steps = change(200)
    found = moved_onto("balanced", asked, steps)
    assert np.abs(found - asked).max() <= 0.51 * steps.max()


@pytest.mark.parametrize("way", WAYS)
def test_a_change_of_more_steps_than_numbers_count_stays(way: str) -> None:
    base = np.zeros((8, 16), "f4")
    base[:, ::2] = 0.25
    asked = np.full((8, 16), 1e-3, "f4")
    found = moved_onto(way, asked, spacing(base, "F32"))
    assert np.array_equal(found[:, 1::2], asked[:, 1::2])
    assert np.abs(found - asked).max() < 1e-7


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "float16"])
def test_spacing_is_the_distance_to_the_next_number(kind: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    bits = np.arange(1 << min(8 * dtype.itemsize - 1, 14), dtype=f"u{dtype.itemsize}")
    numbers = bits.view(dtype).astype("f4")
    known = np.isfinite(numbers[1:]) & np.isfinite(numbers[:-1])
    name = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "bfloat16": "BF16",
            "float16": "F16"}[kind]  # fmt: skip
    assert np.array_equal(spacing(numbers[:-1], name)[known], np.diff(numbers)[known])


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_by_tables_equals_rounding_number_by_number(kind: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, kind))
    every = np.arange(256, dtype="u1").view(dtype).astype("f4")
    known = np.unique(every[np.isfinite(every)])
    middle = (known[1:] + known[:-1]) / 2
    near = [np.nextafter(middle, np.float32(x)) for x in (np.inf, -np.inf)]
    random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, dtype="u4").view("f4")
    exact = np.concatenate((known, middle, *near, random)).astype("f4")
    out, back = np.empty(exact.shape, dtype), np.empty_like(exact)
    with np.errstate(over="ignore", invalid="ignore"):
        round_floats(exact, out, back)
        wanted = exact.astype(dtype)
    assert np.array_equal(back, wanted.astype("f4"), equal_nan=True)
    real = ~np.isnan(back)
    assert np.array_equal(out.view("u1")[real], wanted.view("u1")[real])
    again = np.empty_like(exact)
    widen(out, again)
    assert np.array_equal(again, back, equal_nan=True)


def test_a_bake_keeps_what_nearest_loses_and_repeats(tmp_path: Path) -> None:
    path, a = weak(tmp_path)
    lm.save(a, tmp_path / "a.safetensors", dialect="kohya")
    found = {
        way: lm.bake(path, [(a, 1.0)], tmp_path / f"{way}.gguf", rounding=way)
        for way in ("stochastic", *WAYS)
    }
    for way, one in found.items():
        assert one.survived is not None and 0.7 < one.survived < 1.4, way  # of few weights
    errors = {way: one.relative_error or 0.0 for way, one in found.items()}
    assert errors["balanced"] < 0.8 * errors["stochastic"]
    out = tmp_path / "out.gguf"
    options = ["-b", str(path), str(tmp_path / "a.safetensors"), "--rounding", "balanced"]
    assert main(["bake", *options, "-o", str(out)]) == 0
    assert main(["run", str(out)]) == 0
    with pytest.raises(UsageError, match="another storage"):
        lm.bake(path, [(a, 1.0)], out, rounding="feedback", storage="Q8_0", force=True)
