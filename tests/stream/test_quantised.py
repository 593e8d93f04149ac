"""Bases of float8 with scales: laws that the wrong ways to use a scale break; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from loramerge.adapter import Adapter
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.checkpoint.scaled import ScaledTensor
from loramerge.errors import FormatError, spelled
from loramerge.files.tensors import ArrayTensor
from loramerge.stream.bake import bake, survey
from loramerge.stream.plan import plan_bake
from loramerge.stream.survival import Survival
from tests.builders.bases import (
    STORAGE,
    Array,
    adapter_for,
    exact,
    read_safetensors,
    single,
    ulp,
    unet_alone,
    write_safetensors,
)
from tests.builders.deltas import adapter, low_rank
from tests.tail import crossed

MOST = {"F8_E4M3": 448.0, "F8_E5M2": 57344.0}
STYLES = {"comfyui": (".scale_weight", ".scale_input"), "later": (".weight_scale", ".input_scale")}
FORMS = ("scalar", "one", "row", "column", "half")
LAYERS = ("attn1.to_q", "conv1", "conv_in", "q_proj", "v_proj", "fc1")


def _quantised(
    path: Path, dtype: str, form: str, style: str = "comfyui", *, room: float = 0.9
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Write an SD2.1 single file in scaled float8; return its tensors, and its weights in float64."""
    base = single(path, "sd21")
    tensors, stored, weights = read_safetensors(path)[0], {}, {}
    kind = STORAGE[dtype]
    for name, array in tensors.items():
        wide = array.astype("float64")
        if not name.endswith("weight") or array.ndim < 2 or "first_stage" in name:
            stored[name], weights[name] = array, wide
            continue
        axes = tuple(range(1, array.ndim)) if form in ("row", "column") else None
        top = np.abs(wide).max(axis=axes)
        scale = np.asarray(top / (room * MOST[dtype]))
        scale = scale.reshape({"one": (1,), "row": (-1,), "column": (-1, 1)}.get(form, scale.shape))
        scale = scale.astype("float16" if form == "half" else "float32")
        by_row = scale.astype("float64").reshape(-1, *[1] * (array.ndim - 1))
        stored[name] = (wide / by_row).astype(kind)
        ends = STYLES[style]
        stem = name.removesuffix(".weight")
        stored[stem + ends[0]] = scale
        stored[stem + ends[1]] = np.array(0.5, "float32")
        weights[name] = stored[name].astype("float64") * by_row
    stored["scaled_fp8"] = np.zeros(2, kind)
    write_safetensors(path, stored)
    assert base.path == path
    return stored, weights


def _scale_name(tensors: dict[str, Array], name: str) -> str | None:
    stem = name.removesuffix(".weight")
    return next((stem + e for e, _ in STYLES.values() if stem + e in tensors), None)


def _read(tensors: dict[str, Array]) -> dict[str, Array]:
    """Dequantise: W = stored · scale."""
    found = {}
    for name, array in tensors.items():
        scale = _scale_name(tensors, name)
        wide = array.astype("float64")
        if scale is not None:
            wide = wide * tensors[scale].astype("float64").reshape(-1, *[1] * (array.ndim - 1))
        found[name] = wide
    return found


def _sample(size: float, seed: int = 3) -> Adapter:
    a = adapter_for("sd21", seed=seed, only=lambda name: name.endswith(LAYERS))
    return a.with_deltas({site: delta.scaled(size) for site, delta in a.deltas.items()})


def _asked(path: Path, a: Adapter) -> dict[str, Array]:
    """ΔW of every tensor of the layout in float64."""
    base = single(path, "sd21")
    zero = {k: np.zeros(v.shape) for k, v in base.weights.items()}
    (tensors,) = base.tensors(exact(zero, [(a, 1.0)])).values()
    return {name: np.asarray(array, "float64") for name, array in tensors.items()}


def _bake(path: Path, a: Adapter, out: Path, **options: Any) -> list[Survival]:
    plan = plan_bake(open_checkpoint(path), [(a, Weight())])
    options.setdefault("threads", 1)
    return bake(plan, out, **options)


def _law(tmp_path: Path, dtype: str, form: str, style: str, size: float) -> None:
    """The result is the float64 sum, requantised with the stored scale; the rest is as it was."""
    path, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    a = _sample(size)
    asked = _asked(tmp_path / "zero.safetensors", a)
    stored, weights = _quantised(path, dtype, form, style)
    found = _bake(path, a, out)
    after = read_safetensors(out)[0]
    assert list(after) == list(stored)
    changed = {s.tensor for s in found}
    for name, array in stored.items():
        delta = asked.get(name)
        if name not in changed or delta is None:
            assert after[name].tobytes() == array.tobytes(), name
            continue
        scale = _scale_name(stored, name)
        if scale is None:
            continue
        assert after[scale].tobytes() == stored[scale].tobytes()
        by_row = stored[scale].astype("float64").reshape(-1, *[1] * (array.ndim - 1))
        want = (weights[name] + delta) / by_row
        got = after[name].astype("float64")
        near = 0.5 * ulp(want, dtype) + 2.0**-21 * (np.abs(weights[name]) + np.abs(delta)) / by_row
        assert (np.abs(got - want) <= near).all(), name
        still = delta == 0
        assert after[name][still].tobytes() == array[still].tobytes(), name


@pytest.mark.long_tail(keep=4)
@pytest.mark.parametrize(("dtype", "form", "style"), crossed(MOST, FORMS, STYLES))
def test_the_sum_requantised_with_the_stored_scale(
    tmp_path: Path, dtype: str, form: str, style: str
) -> None:
    if style == "comfyui" or form in ("scalar", "row"):
        _law(tmp_path, dtype, form, style, 0.02)


_WRONG: dict[str, Callable[[Any], Any]] = {
    "ignored": np.ones_like,
    "inverted": lambda scale: 1 / scale,
    "twice": lambda scale: scale**2,
    "first row": lambda scale: np.broadcast_to(scale[:1], scale.shape),
}


@pytest.mark.parametrize("wrong", _WRONG)
def test_wrong_uses_of_a_scale_break_the_law(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    right = ScaledTensor.column
    monkeypatch.setattr(ScaledTensor, "column", lambda held: _WRONG[wrong](right(held)))
    with pytest.raises(AssertionError):
        _law(tmp_path, "F8_E4M3", "row", "comfyui", 0.02)


@pytest.mark.long_tail(keep=3)
@pytest.mark.parametrize("form", ["scalar", "row", "half"])
@pytest.mark.parametrize("dtype", MOST)
def test_a_scale_grows_only_where_values_would_overflow(
    tmp_path: Path, dtype: str, form: str
) -> None:
    path, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    a = _sample(3.0)
    asked = _asked(tmp_path / "zero.safetensors", a)
    stored, weights = _quantised(path, dtype, form, room=1.0)
    found = _bake(path, a, out)
    grown = {s.tensor for s in found if s.rescaled}
    assert grown
    after = read_safetensors(out)[0]
    for survival in found:
        name = survival.tensor
        scale = _scale_name(stored, name)
        if scale is None:
            continue
        old, new = stored[scale].astype("float64"), after[scale].astype("float64")
        assert ((new == old) | (new > old)).all() and (new > old).any() == (name in grown)
        want = weights[name] + asked[name]
        by_row = new.reshape(-1, *[1] * (want.ndim - 1))
        got = after[name].astype("float64")
        assert np.isfinite(got).all()
        near = 0.51 * ulp(want / by_row, dtype) + 1e-3 * ulp(np.abs(want / by_row).max(), dtype)
        top = np.abs(want / by_row) > MOST[dtype]
        assert (np.abs(got - want / by_row)[~top] <= near[~top]).all(), name
        assert (np.abs(got[top]) == MOST[dtype]).all()
        if form == "row":
            same = (new == old).reshape(-1)
            untouched = same & (np.abs(asked[name]).reshape(len(same), -1).max(axis=1) == 0)
            assert after[name][untouched].tobytes() == stored[name][untouched].tobytes()


def test_survival_is_that_of_the_dequantised_weights(tmp_path: Path) -> None:
    path, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    a = _sample(0.002)
    asked = _asked(tmp_path / "zero.safetensors", a)
    stored, weights = _quantised(path, "F8_E4M3", "row")
    found = _bake(path, a, out)
    after = _read(read_safetensors(out)[0])
    sums = {}
    for s in found:
        sums.setdefault(s.tensor, []).append(s)
    for name, parts in sums.items():
        if len(parts) > 1 or _scale_name(stored, name) is None:
            continue
        written, wanted = after[name] - weights[name], asked[name]
        (s,) = parts
        assert s.asked == pytest.approx(float((wanted**2).sum()), rel=1e-4)
        assert s.base == pytest.approx(float((weights[name] ** 2).sum()), rel=1e-4)
        assert s.along == pytest.approx(
            float((written * wanted).sum()), rel=1e-3, abs=1e-6 * s.base
        )
        assert s.error == pytest.approx(float(((written - wanted) ** 2).sum()), rel=1e-3)
    plan = plan_bake(open_checkpoint(path), [(a, Weight())])
    assert survey(plan, threads=1) == found


def test_stochastic_rounding_keeps_the_change_in_expectation(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    a = _sample(0.004)
    stored, _ = _quantised(path, "F8_E4M3", "scalar")
    nearest = _bake(path, a, tmp_path / "n.safetensors")
    runs = [_bake(path, a, tmp_path / f"{seed}.safetensors", seed=seed) for seed in range(4)]
    for many in (nearest, *runs):
        assert sum(s.asked for s in many) > 0
    kept = [sum(s.along for s in many) / sum(s.asked for s in many) for many in runs]
    assert abs(np.mean(kept) - 1) < 0.1
    before = stored
    for seed in range(4):
        after = read_safetensors(tmp_path / f"{seed}.safetensors")[0]
        fused = [n for n in before if n.endswith("in_proj_weight")]
        for name in fused:  # the rows of keys, between queries and values, have no delta
            third = len(before[name]) // 3
            keys = slice(third, 2 * third)
            assert after[name][keys].tobytes() == before[name][keys].tobytes()


def test_threads_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    _quantised(path, "F8_E4M3", "row", room=1.0)
    for threads in (1, 3):
        _bake(path, _sample(2.0), tmp_path / f"{threads}.safetensors", threads=threads, seed=1)
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "3.safetensors").read_bytes()


def _edited(tmp_path: Path, edit: Callable[[dict[str, Array], str], None]) -> Path:
    path = tmp_path / "base.safetensors"
    stored, _ = _quantised(path, "F8_E4M3", "scalar")
    name = next(n for n in stored if n.endswith("attn1.to_q.weight"))
    edit(stored, name)
    write_safetensors(path, stored)
    return path


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.ones((2, 2), "float32"), "neither one number nor one for each row"),
        (np.ones((), "int8"), "neither one number"),
        (np.zeros((), "float32"), "not positive"),
        (np.array(np.nan, "float32"), "not positive"),
    ],
)
def test_scales_that_cannot_be(tmp_path: Path, value: Array, says: str) -> None:
    path = _edited(
        tmp_path, lambda t, n: t.update({n.removesuffix(".weight") + ".scale_weight": value})
    )
    with pytest.raises(FormatError, match=says):
        _bake(path, _sample(0.1), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_another_type_is_refused(tmp_path: Path) -> None:
    path = _edited(tmp_path, lambda *_: None)
    with pytest.raises(FormatError, match="another type"):
        plan_bake(open_checkpoint(path), [(_sample(0.1), Weight())], dtype="F16")


def test_blocks_of_integers_are_named(tmp_path: Path) -> None:
    base = unet_alone(tmp_path / "nf4.safetensors", "sd15", "")
    tensors = read_safetensors(base.path)[0]
    name = next(n for n in tensors if n.endswith("attn1.to_q.weight"))
    tensors[name] = np.zeros((tensors[name].size // 2, 1), "int8")
    tensors[f"{name}.quant_state.bitsandbytes__nf4"] = np.zeros(9, "int8")
    write_safetensors(base.path, tensors)
    a = adapter_for("sd15", only=lambda n: n.endswith("attn1.to_q"))
    with pytest.raises(FormatError, match="quantised") as caught:
        plan_bake(open_checkpoint(base.path), [(a, Weight())])
    assert "NF4 of bitsandbytes" in str(caught.value) and "beside the base" in str(caught.value)


def test_gguf_of_an_unknown_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(FormatError, match="version of GGUF"):
        open_checkpoint(tmp_path / "x.gguf")


def test_a_larger_scale_fits_the_type_it_is_stored_in() -> None:
    scale = np.full((3, 1), 0.1, "float32").astype(ml_dtypes.bfloat16)
    weight = np.array([[1, 2], [448, 3], [4, 5]], "float32")
    held = ScaledTensor("scale", ArrayTensor(scale), ArrayTensor(weight))
    codec = held.codec("F8_E4M3")
    out = np.empty((3, 2), "float32")
    codec.add(weight, np.array([[0, 0], [7.7, 0], [0, 0]], "float32"), 0, out)
    assert not codec.fits(0, 3) and codec.overflowed()
    stored = np.frombuffer(codec.beside()["scale"], ml_dtypes.bfloat16).astype("float32")
    before = scale.astype("float32")[:, 0]
    assert (stored[[0, 2]] == before[[0, 2]]).all() and stored[1] > before[1]
    assert (448 * before[1] + 7.7) / stored[1] <= 448


def test_an_adapter_that_is_not_finite_is_an_error_not_a_scale(tmp_path: Path) -> None:
    from loramerge.errors import NumericsError

    path = tmp_path / "base.safetensors"
    stored, _ = _quantised(path, "F8_E4M3", "scalar")
    name = next(n for n in stored if n.endswith("input_blocks.0.0.weight"))
    shape = stored[name].shape
    delta = low_rank(shape, 2)
    delta.up.numpy().reshape(-1)[0] = np.nan
    a = adapter({"unet.conv_in": delta}, families=["sd21"])
    with pytest.raises(NumericsError):
        _bake(path, a, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_the_report_says_that_scales_grew(tmp_path: Path) -> None:
    import loramerge as lm

    path = tmp_path / "base.safetensors"
    _quantised(path, "F8_E4M3", "row", room=1.0)
    events: list[Any] = []
    result = lm.bake(
        path, [(_sample(3.0), 1.0)], tmp_path / "out.safetensors", notify=events.append, strip=True
    )
    told = [event.text for event in events if hasattr(event, "text")]
    assert any("larger scale" in message for message in told), told
    assert result.survived is not None and result.survived > 0.5
    weak = lm.bake(
        path,
        [(_sample(0.0005), 1.0)],
        tmp_path / "weak.safetensors",
        notify=events.append,
        strip=True,
        allow_loss=True,
    )
    assert weak.survived is not None and weak.survived < 0.9
    texts = [spelled(getattr(e, "text", "")) for e in events]
    (warning,) = [text for text in texts if "is kept after rounding" in text]
    assert "float8_e4m3" in warning and "rounding='stochastic'" in warning
    assert "keep_touched='bfloat16'" in warning and " dtype=" not in warning
