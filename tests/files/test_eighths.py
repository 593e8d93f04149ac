"""Fast conversions of float8 give the bits of ml_dtypes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from loramerge.files import eighths
from tests.builders.deltas import rng

Array = np.ndarray[Any, Any]
KINDS = [np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def of_all_bytes(kind: Any) -> Array:
    return np.arange(256, dtype=np.uint8).view(kind)


def numbers(kind: Any) -> dict[str, Array]:
    """Float32 numbers at and beside every border between two float8, and others, both signs of each."""
    values = of_all_bytes(kind).astype("f8")
    finite = np.unique(values[np.isfinite(values)])
    exact = np.concatenate([finite, (finite[1:] + finite[:-1]) / 2]).astype("f4")
    beside = [np.nextafter(exact, np.float32(end)) for end in (np.inf, -np.inf)]
    borders = np.concatenate([exact, *beside])
    most = np.abs(finite).max()
    random = rng(0)
    powers = 10.0 ** random.uniform(-9, 4, 30_000)
    many = (random.standard_normal(30_000) * powers).astype("f4")
    special = np.array([0.0, np.inf, np.nan, 1e-40, 464.0, 465.0, 61440.0, 3e38, 2.0**110], "f4")
    found = {
        "borders": borders, "that fit": borders[np.abs(borders) <= most], "many": many,
        "many that fit": many[np.abs(many) <= most], "special": special,
        "with one that does not fit": np.append(borders, np.float32(3e38)),
        "a bit too large": (most * np.linspace(0.9, 1.9, 99)).astype("f4"),
        "more than a piece": np.resize(borders[np.abs(borders) <= most], (1 << 17) + 5),
    }  # fmt: skip
    return {name: np.concatenate([some, -some]) for name, some in found.items()} | {
        "one": many[:1], "none": many[:0]
    }  # fmt: skip


def violation(kind: Any) -> str:
    """Return which numbers are not rounded, or not read, as ml_dtypes does; empty if all are."""
    for name, exact in numbers(kind).items():
        out, back, again = np.empty(len(exact), kind), np.empty_like(exact), np.empty_like(exact)
        eighths.round_eighths(exact, out, back)
        eighths.widen_eighths(out, again)
        with np.errstate(over="ignore", invalid="ignore"):
            right = exact.astype(kind)
        same = (out.view("u1") == right.view("u1")) | np.isnan(exact) & np.isnan(again)
        if not same.all():
            return f"bytes of {name}"
        for word, floats in (("back", back), ("again", again)):
            if not np.array_equal(floats, right.astype("f4"), equal_nan=True):
                return f"{word} of {name}"
    return ""


@kinds
def test_numbers_are_rounded_and_read_as_ml_dtypes_does(kind: Any) -> None:
    assert violation(kind) == ""


@kinds
def test_every_pair_of_bytes_becomes_the_same_floats(kind: Any) -> None:
    pairs = np.arange(1 << 16, dtype=np.uint16).view(kind)
    for raw in (pairs, pairs[1:-2], finite(kind), finite(kind)[1:-1], of_all_bytes(kind)[:1]):
        assert is_widened(raw)


def finite(kind: Any) -> Array:
    """All finite numbers, the normal ones often, so that bits are shifted and no table is used."""
    every = of_all_bytes(kind)
    every = every[np.isfinite(every.astype("f4"))]
    return np.concatenate([every, *[every[np.abs(every.astype("f4")) > 0.1]] * 9])


def is_widened(raw: Array) -> bool:
    out, right = np.empty(len(raw), "f4"), raw.astype("f4")
    eighths.widen_eighths(raw, out)
    same = np.array_equal(out, right, equal_nan=True)
    return same and np.array_equal(np.signbit(out), np.signbit(right))


@kinds
@pytest.mark.parametrize("place", [0, 1])
def test_a_wrong_shift_or_factor_is_found(
    kind: Any, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = list(eighths._LAYOUTS[kind.name])
    layout[place] += 1
    monkeypatch.setitem(eighths._LAYOUTS, kind.name, tuple(layout))
    assert not is_widened(finite(kind))


@kinds
def test_a_number_taken_for_a_finite_one_is_found(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    *layout, _ = eighths._LAYOUTS[kind.name]
    monkeypatch.setitem(eighths._LAYOUTS, kind.name, (*layout, 0x80))
    raw = np.concatenate([finite(kind), of_all_bytes(kind)[[0x7F, 0xFF]]])
    assert not is_widened(raw)


@kinds
def test_threads_without_subnormals_use_the_table(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eighths, "with_subnormals", lambda: False)
    monkeypatch.setattr(np, "left_shift", None)
    assert is_widened(finite(kind))


@kinds
@pytest.mark.parametrize(
    "fault",
    [(0, 0, 2.0), (1, 0, 1.0), (-1, 0, 1.0), (0, 1, 1.0), (0, -1, 1.0)],
    ids=["too large", "a bit more", "a bit less", "bias more", "bias less"],
)
def test_a_wrong_layout_is_found(
    kind: Any, fault: tuple[int, int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    mantissa, bias, most, beyond = eighths._LAYOUTS[kind.name]
    wrong = (mantissa + fault[0], bias + fault[1], most * fault[2], beyond)
    monkeypatch.setitem(eighths._LAYOUTS, kind.name, wrong)
    assert violation(kind)


@kinds
@pytest.mark.parametrize("fault", ["halves up", "no sign", "sticky bit lost"])
def test_a_wrong_rounding_is_found(kind: Any, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_back, fill_codes, table = eighths._fill_back, eighths._fill_codes, eighths._round

    def up(exact: Array, *rest: Any) -> bool:
        return fill_back(np.nextafter(exact, np.float32(np.inf)), *rest)

    def unsigned(exact: Array, *rest: Any) -> None:
        fill_codes(np.abs(exact), *rest)

    def cut(exact: Array, *rest: Any) -> None:
        upper = exact.view(np.uint32) & np.uint32(0xFFFF0000)
        table(upper.view(np.float32), *rest)

    name, wrong = {
        "halves up": ("_fill_back", up), "no sign": ("_fill_codes", unsigned),
        "sticky bit lost": ("_round", cut),
    }[fault]  # fmt: skip
    monkeypatch.setattr(eighths, name, wrong)
    assert violation(kind)
