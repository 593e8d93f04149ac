"""Merges of checkpoints are what their definition says, in the layout of the first input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from loramerge.algebra import kth_largest
from loramerge.algebra.weights import Weight
from loramerge.files.positioned import PositionedFile
from loramerge.stream import blend, summing
from tests.builders import small_models
from tests.builders.bases import (
    ulp,
)
from tests.stream.merges import merged, small_bytes, wide


def test_a_weighted_sum(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    merged(tmp_path / "out", (a, 0.3), (b, 0.7), dtype="F32")
    x, y = wide(a), wide(b)
    for name, value in small_models.read(tmp_path / "out").items():
        np.testing.assert_allclose(value, 0.3 * x[name] + 0.7 * y[name], rtol=1e-5, atol=1e-6)
        assert not np.allclose(value, 0.7 * x[name] + 0.3 * y[name], rtol=1e-5, atol=1e-6)


def test_the_first_has_what_the_others_leave(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    merged(tmp_path / "one", (a, 1.0), (b, 0.25))
    merged(tmp_path / "other", (a, 0.75), (b, 0.25))
    assert small_bytes(tmp_path / "one") == small_bytes(tmp_path / "other")


def test_add_difference(three: list[Path], tmp_path: Path) -> None:
    base, a, b = three
    found = merged(tmp_path / "out", (a, 1.0), (b, 0.5), base=base, dtype="F64")
    c, x, y = wide(base), wide(a), wide(b)
    for name, value in small_models.read(tmp_path / "out").items():
        want = x[name] + 0.5 * (y[name] - c[name])
        np.testing.assert_allclose(value, want, rtol=0, atol=1e-14)
        assert not np.allclose(value, c[name] + 0.5 * (x[name] + y[name] - 2 * c[name]))
    moved = {one.survival.module: one.survival for one in found}
    change = x["lm_head.weight"] - c["lm_head.weight"]
    other = y["lm_head.weight"] - c["lm_head.weight"]
    assert moved["lm_head"].asked == pytest.approx(float(((change + 0.5 * other) ** 2).sum()))
    (products,) = (one.products for one in found if one.survival.module == "lm_head")
    assert products[0, 1] == pytest.approx(float((change * other).sum()), rel=1e-6)


def test_one_rounding_to_half_precision(three: list[Path], tmp_path: Path) -> None:
    base, a, b = three
    merged(tmp_path / "out", (a, 1.0), (b, 0.5), base=base)
    c, x, y = wide(base), wide(a), wide(b)
    for name, value in small_models.read(tmp_path / "out").items():
        assert value.dtype == np.float16
        want = x[name] + 0.5 * (y[name] - c[name])
        assert (np.abs(value - want) <= 0.5001 * ulp(want, "F16")).all()


def test_a_model_alone_is_copied_to_the_bit(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    found = merged(tmp_path / "out", (a, 1.0), (b, Weight(0.0)))
    assert small_bytes(tmp_path / "out") == small_bytes(a)
    assert found == []  # nothing was computed


def test_a_change_is_measured_from_the_first_input(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    found = merged(tmp_path / "out", (a, 0.0), (b, 1.0))
    x, y = wide(a)["lm_head.weight"], wide(b)["lm_head.weight"]
    (one,) = (one.survival for one in found if one.survival.module == "lm_head")
    assert one.asked == pytest.approx(float(((y - x) ** 2).sum()), rel=1e-5)
    assert one.base == pytest.approx(float((x**2).sum()), rel=1e-5)


# --- how it is computed ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "ties", "slerp", "della"])
def test_the_same_bytes_on_any_number_of_threads(
    three: list[Path], tmp_path: Path, method: str
) -> None:
    base, a, b = three
    for threads in (1, 2):
        merged(tmp_path / f"{threads}", (a, 0.6), (b, 0.4), base=base, method=method,
               threads=threads)  # fmt: skip
    files = [(tmp_path / f"{n}" / small_models.FILE).read_bytes() for n in (1, 2)]
    assert files[0] == files[1]


@pytest.mark.parametrize("method", ["linear", "ties", "slerp", "sce"])
def test_no_tensor_is_read_as_a_whole(
    three: list[Path], tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0
    read = PositionedFile.read_into

    def counted(self: PositionedFile, offset: int, out: Any) -> None:
        nonlocal most
        most = max(most, memoryview(out).nbytes)
        read(self, offset, out)

    monkeypatch.setattr(blend, "BLOCK_ELEMENTS", 40)
    monkeypatch.setattr(summing, "PIECE", 40)
    monkeypatch.setattr(kth_largest, "_HELD", 8)
    base, a, b = three
    monkeypatch.setattr(PositionedFile, "read_into", counted)
    settings = {"select": 0.5} if method == "sce" else {}
    merged(tmp_path / "out", (a, 0.6), (b, 0.4), base=base, method=method, settings=settings)
    assert 0 < most <= 40 * 2  # bytes of a block in float16; the largest tensor has 592


@pytest.mark.parametrize("on_base", [True, False])
@pytest.mark.parametrize(
    ("method", "dtype"), [("linear", "F16"), ("linear", "F32"), ("slerp", "F16")]
)
def test_sums_in_pieces_are_those_of_whole_blocks(
    three: list[Path],
    tmp_path: Path,
    method: str,
    dtype: str,
    on_base: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, a, b = three
    options = {"base": base if on_base else None, "method": method, "dtype": dtype}
    monkeypatch.setattr(summing, "PIECE", 40)
    pieces = merged(tmp_path / "pieces", (a, 0.6), (b, 0.4), **options)
    monkeypatch.setattr(blend, "is_plain", lambda place: False)
    blocks = merged(tmp_path / "blocks", (a, 0.6), (b, 0.4), **options)
    files = [(tmp_path / n / small_models.FILE).read_bytes() for n in ("pieces", "blocks")]
    assert files[0] == files[1]
    for one, other in zip(pieces, blocks, strict=True):
        assert one.products == pytest.approx(other.products, rel=1e-5)
        for name in ("asked", "along", "error", "base"):
            found, known = getattr(one.survival, name), getattr(other.survival, name)
            assert found == pytest.approx(known, rel=1e-4, abs=1e-12)


def test_what_is_interrupted_leaves_nothing(three: list[Path], tmp_path: Path) -> None:
    base, a, b = three

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merged(tmp_path / "out", (a, 0.6), (b, 0.4), base=base, notify=stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "tuned-1", "tuned-2"]


# --- types ----------------------------------------------------------------------------------------


def test_float8_with_scales(tmp_path: Path) -> None:
    e4m3 = ml_dtypes.float8_e4m3fn
    name = "model.layers.0.q_proj.weight"
    values = np.random.default_rng(0).standard_normal((6, 8)).astype("float32")
    scale = np.array([0.01], "float32")
    stored = {name: (values / scale).astype(e4m3), name.replace("weight", "weight_scale"): scale}
    a = small_models.write(tmp_path / "a", stored)
    b = small_models.write(tmp_path / "b", {name: (2 * values).astype("float32")})
    merged(tmp_path / "out", (a, 0.5), (b, 0.5))
    got = small_models.read(tmp_path / "out")
    assert got[name].dtype == e4m3 and set(got) == set(stored)
    known = stored[name].astype("float32") * scale
    now = got[name].astype("float32") * got[name.replace("weight", "weight_scale")]
    want = 0.5 * known + values
    assert np.abs(now - want).max() <= np.abs(want).max() / 16  # a step of the type
    merged(tmp_path / "wide", (b, 0.5), (a, 0.5))
    np.testing.assert_allclose(small_models.read(tmp_path / "wide")[name], want, atol=1e-6)


def test_a_type_for_all(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    merged(tmp_path / "out", (a, 1.0), (b, Weight(0.0)), dtype="F32")
    assert all(
        np.array_equal(value, wide(a)[name]) and value.dtype == np.float32
        for name, value in small_models.read(tmp_path / "out").items()
    )
