"""Kinds beside plain LoRA: Tucker cores, full differences, biases, norms; and foreign ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter import Adapter, LowRank, Scale, Site
from loramerge.adapter.delta import Delta
from loramerge.adapter.kinds.replacement import Replacement
from loramerge.adapter.kinds.tucker import Tucker
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.errors import (
    AdapterError,
    LoramergeError,
    NotExpressible,
    NotLowRank,
    NumericsError,
    ShapeError,
    UnsupportedKind,
)
from loramerge.files.tensors import ArrayTensor
from tests.builders.samples import (
    Array,
    adaptable,
    data_section,
    dense,
    factors_for,
    relative,
    safetensors_bytes,
    spell,
    write,
)

CONV = "lora_unet_down_blocks_1_resnets_0_conv1"
LINEAR = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
NORM = "lora_unet_down_blocks_1_attentions_0_norm"
CONV_MODULE = "unet.down_blocks.1.resnets.0.conv1"
LINEAR_MODULE = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
NORM_MODULE = "unet.down_blocks.1.attentions.0.norm"
V1 = {"modelspec.architecture": "stable-diffusion-v1/lora"}


def values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def loaded(tensors: dict[str, Array], folder: Path) -> Adapter:
    path = folder / "a.safetensors"
    path.write_bytes(safetensors_bytes(tensors, V1))
    return load(path)


def tucker() -> dict[str, Array]:
    return {
        f"{CONV}.lora_up.weight": values(12, 3, 1, 1),
        f"{CONV}.lora_mid.weight": values(3, 3, 3, 3),
        f"{CONV}.lora_down.weight": values(3, 8, 1, 1),
        f"{CONV}.alpha": np.array(1.5, np.float32),
    }


def named(adapter: Adapter) -> dict[str, Delta]:
    return {site.name: delta for site, delta in adapter.deltas.items()}


# --- Tucker ------------------------------------------------------------------------------------


def test_a_tucker_core_means_the_four_fold_sum(tmp_path: Path) -> None:
    t = tucker()
    adapter = loaded(t, tmp_path).require_sound()
    (delta,) = adapter.deltas.values()
    assert (delta.kind, delta.shape, delta.rank, delta.alpha) == ("tucker", (12, 8, 3, 3), 3, 1.5)
    up, mid, down = (t[f"{CONV}.lora_{role}.weight"] for role in ("up", "mid", "down"))
    expected = dense(up, down, 0.5, mid)
    assert relative(delta.dense(), expected) < 1e-12
    left, right = delta.factors("float64")
    assert left.shape == (12, 3) and right.shape == (3, 72)
    assert relative((left @ right).reshape(expected.shape), expected) < 1e-12
    # transposing the core is the mistake that shapes do not show
    assert relative(dense(up, down, 0.5, mid.swapaxes(0, 1)), expected) > 0.1
    again = tmp_path / "b.safetensors"
    save(adapter, again)
    assert data_section(again) == data_section(tmp_path / "a.safetensors")


# --- whole differences -------------------------------------------------------------------------


def whole() -> dict[str, Array]:
    return {
        f"{LINEAR}.diff": values(16, 16),
        f"{LINEAR}.diff_b": values(16),
        f"{CONV}.diff": values(16, 8, 3, 3),
        f"{NORM}.w_norm": values(16),
        f"{NORM}.b_norm": values(16, seed=1),
    }


def test_full_differences_keep_their_values(tmp_path: Path) -> None:
    t = whole()
    adapter = loaded(t, tmp_path).require_sound()
    assert adapter.kinds() == {"full": 2, "bias": 1, "norm": 2}
    expected = {
        LINEAR_MODULE: (f"{LINEAR}.diff", "full"),
        f"{LINEAR_MODULE}.bias": (f"{LINEAR}.diff_b", "bias"),
        CONV_MODULE: (f"{CONV}.diff", "full"),
        NORM_MODULE: (f"{NORM}.w_norm", "norm"),
        f"{NORM_MODULE}.bias": (f"{NORM}.b_norm", "norm"),
    }
    found = named(adapter)
    assert set(found) == set(expected)
    for name, (key, kind) in expected.items():
        delta = found[name]
        assert delta.kind == kind and delta.rank is None and delta.alpha is None
        assert np.array_equal(delta.dense(), t[key])
        assert np.array_equal(delta.scaled(-0.5).dense(), -0.5 * t[key].astype(np.float64))
        with pytest.raises(NotLowRank):
            delta.factors()
    save(adapter, tmp_path / "b.safetensors")
    assert data_section(tmp_path / "b.safetensors") == data_section(tmp_path / "a.safetensors")


def test_a_bias_beside_factors_is_a_site_of_its_own(tmp_path: Path) -> None:
    t = spell(
        factors_for({LINEAR_MODULE: adaptable("sd15")[LINEAR_MODULE]}), "sd15", "kohya"
    ).tensors
    adapter = loaded(t | {f"{LINEAR}.diff_b": values(16)}, tmp_path).require_sound()
    assert {s: d.kind for s, d in adapter.deltas.items()} == {
        Site((LINEAR_MODULE,)): "lora",
        Site((LINEAR_MODULE,), "bias"): "bias",
    }


def test_rows_are_those_of_the_dense_delta(tmp_path: Path) -> None:
    adapter = loaded(
        whole() | {k.replace("resnets_0", "resnets_1"): v for k, v in tucker().items()}, tmp_path
    )
    assert adapter.kinds()["tucker"] == 1
    for delta in adapter.deltas.values():
        rows, columns = delta.flat_shape
        expected = delta.dense().reshape(rows, columns)
        for fresh in (True, False):
            out = np.full((3, columns), 7.0, np.float32)
            delta.row_adder()(2, 5, None, out, fresh)
            assert relative(out, expected[2:5] + (0 if fresh else 7)) < 1e-6


def test_a_replacement_takes_the_place_of_the_base() -> None:
    value, base = values(4, 5), values(4, 5, seed=1).astype(np.float64)
    delta = Replacement.of(ArrayTensor(value), "set_weight")
    assert np.array_equal(base + delta.dense(base), base + (value - base))
    assert np.allclose(base + delta.scaled(0.25).dense(base), 0.75 * base + 0.25 * value)
    out = np.zeros((2, 5), np.float32)
    delta.row_adder()(1, 3, base[1:3], out, True)
    assert relative(out, (value - base)[1:3]) < 1e-6
    with pytest.raises(AdapterError, match="only against a base"):
        delta.dense()
    with pytest.raises(AdapterError, match="weight other than 1"):
        delta.scaled(0.5).encoded(None, alpha=True)


# --- shapes that do not fit --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("up", "down"),
    [((4, 3), (2, 5)), ((4, 3, 3, 3), (3, 5)), ((4,), (4, 5)), ((4, 3), (3,))],
)
def test_factors_that_do_not_fit_are_refused(up: tuple[int, ...], down: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="do not fit together") as caught:
        LowRank.of(ArrayTensor(values(*up)), ArrayTensor(values(*down)), what="m")
    assert caught.value.module == "m" and str(list(up)) in str(caught.value)


def test_a_core_that_does_not_fit_is_refused() -> None:
    t = [ArrayTensor(values(*shape)) for shape in ((4, 3, 1, 1), (3, 5, 1, 1), (2, 3, 3, 3))]
    with pytest.raises(ShapeError, match="up, mid and down"):
        Tucker.of(*t)


def test_a_scale_is_alpha_over_rank_or_its_root() -> None:
    assert Scale().value(8) == 1.0
    assert Scale(2.0).value(8) == 0.25
    assert Scale(2.0, root=True).value(16) == 0.5
    assert Scale(2.0, weight=-3.0).value(8) == -0.75


# --- foreign kinds -----------------------------------------------------------------------------

FOREIGN: dict[str, dict[str, Array]] = {
    "oft-diag": {"oft_diag": values(4, 4, 4), "alpha": np.array(1.0, np.float32)},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_kind_is_recognised_named_and_kept(kind: str, tmp_path: Path) -> None:
    tensors = {f"{LINEAR}.{end}": value for end, value in FOREIGN[kind].items()}
    adapter = loaded(tensors, tmp_path).require_sound()
    assert adapter.kinds() == {kind: 1}
    assert not adapter.info.account.unknown
    assert sorted(adapter.info.account.used) == sorted(tensors)
    (delta,) = adapter.deltas.values()
    refusals = (
        lambda: delta.dense(), lambda: delta.factors(), lambda: delta.scaled(0.5),
        lambda: delta.row_adder(), lambda: save(adapter, tmp_path / "c", dtype="F16"),
    )  # fmt: skip
    for refused in refusals:
        with pytest.raises(UnsupportedKind, match=f"reads {kind} adapters but cannot") as caught:
            refused()
        assert caught.value.exit_code == 5
    save(adapter, tmp_path / "b.safetensors")
    assert data_section(tmp_path / "b.safetensors") == data_section(tmp_path / "a.safetensors")


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_dora_in_peft_keys_means_outputs_and_goes_to_kohya_and_back(
    kernel: tuple[int, ...], tmp_path: Path
) -> None:
    stem = CONV_MODULE if kernel else LINEAR_MODULE
    ones = (1,) * len(kernel)
    magnitude = np.abs(values(1, 16, *ones) if kernel else values(16))
    tensors = {
        f"{stem}.lora_A.weight": values(2, 16, *kernel),
        f"{stem}.lora_B.weight": values(16, 2, *ones),
        f"{stem}.lora_magnitude_vector": magnitude,
    }
    adapter = loaded(tensors, tmp_path).require_sound()
    assert adapter.kinds() == {"dora": 1}
    base = values(16, 16, *kernel, seed=5).astype(np.float64)
    (delta,) = adapter.deltas.values()
    step = dense(tensors[f"{stem}.lora_B.weight"], tensors[f"{stem}.lora_A.weight"], 1.0)
    moved = base + step
    norm = np.sqrt((moved**2).reshape(16, -1).sum(1)).reshape(16, 1, *ones)
    expected = magnitude.reshape(16, 1, *ones) * moved / norm - base
    assert relative(delta.dense(base), expected) < 1e-12
    save(adapter, tmp_path / "kohya.safetensors", to="kohya")
    written = load(tmp_path / "kohya.safetensors")
    (other,) = written.deltas.values()
    assert other.stored()["dora_scale"].shape == (16, 1, *ones)
    assert relative(other.dense(base), expected) < 1e-6
    save(written, tmp_path / "again.safetensors", to="diffusers")
    (again,) = load(tmp_path / "again.safetensors").deltas.values()
    assert again.stored()["magnitude"].shape == magnitude.shape
    assert relative(again.dense(base), expected) < 1e-6


def test_dora_of_inputs_cannot_be_said_in_peft_keys(tmp_path: Path) -> None:
    t = {"lora_up.weight": values(16, 2), "lora_down.weight": values(2, 16),
         "dora_scale": values(1, 16)}  # fmt: skip
    adapter = loaded({f"{LINEAR}.{end}": value for end, value in t.items()}, tmp_path)
    with pytest.raises(NotExpressible, match="cannot store") as caught:
        save(adapter, tmp_path / "b", to="diffusers")
    assert f"{LINEAR_MODULE} (dora_scale)" in str(caught.value)


# --- what a dialect cannot say -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "target", "said"),
    [
        (tucker(), "diffusers", f"{CONV_MODULE} (mid)"),
        (tucker(), "peft", f"{CONV_MODULE} (mid)"),
        (whole(), "diffusers", f"{LINEAR_MODULE} (diff)"),
        (whole(), "peft", f"{NORM_MODULE} (w_norm)"),
        (whole(), "diffusers-legacy", f"{LINEAR_MODULE}.bias (diff_b)"),
        (tucker(), "lora_diffusion", CONV_MODULE),
    ],
)
def test_modules_that_a_dialect_cannot_store_are_listed(
    tensors: dict[str, Array], target: str, said: str, tmp_path: Path
) -> None:
    adapter = loaded(tensors, tmp_path)
    with pytest.raises(NotExpressible) as caught:
        save(adapter, tmp_path / "b", to=target)
    assert caught.value.exit_code == 4
    assert said in str(caught.value) and target in str(caught.value)
    assert "to='kohya'" in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == {"a.safetensors"}


def test_embeddings_that_cannot_be_said_are_named(tmp_path: Path) -> None:
    sample = spell(factors_for({LINEAR_MODULE: adaptable("sd15")[LINEAR_MODULE]}), "sd15", "kohya")
    sample.tensors["bundle_emb.cat.string_to_param.*"] = values(3, 12)
    adapter = load(write(sample, tmp_path / "a.safetensors"))
    for target in ("diffusers", "peft", "lora_diffusion"):
        with pytest.raises(NotExpressible) as caught:
            save(adapter, tmp_path / "b", to=target)
        assert caught.value.module == "bundle_emb.cat.string_to_param.*"


# --- numbers that do not fit -------------------------------------------------------------------


def test_an_overflow_names_the_module(tmp_path: Path) -> None:
    stem = LINEAR_MODULE
    tensors = {
        f"{LINEAR}.lora_up.weight": np.full((16, 2), 6e4, np.float32),
        f"{LINEAR}.lora_down.weight": np.full((2, 16), 6e4, np.float32),  # no room here either
        f"{LINEAR}.alpha": np.array(1000.0, np.float32),
    }
    adapter = loaded(tensors, tmp_path)
    with pytest.raises(NumericsError, match="do not fit float16") as caught:
        save(adapter, tmp_path / "b", to="diffusers", dtype="F16")
    assert caught.value.exit_code == 7
    assert stem in str(caught.value.module)
    assert caught.value.file == str(tmp_path / "a.safetensors")
    assert not (tmp_path / "b").exists()
    save(adapter, tmp_path / "b", to="diffusers", dtype="BF16")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nonfinite_values_are_not_written(bad: float, tmp_path: Path) -> None:
    up = values(16, 2)
    up[3, 1] = bad
    adapter = loaded(
        {f"{LINEAR}.lora_up.weight": up, f"{LINEAR}.lora_down.weight": values(2, 16)}, tmp_path
    )
    with pytest.raises(NumericsError, match="NaN or infinity"):
        save(adapter, tmp_path / "b", dtype="F16")


def test_an_error_is_one_of_ours() -> None:
    assert issubclass(UnsupportedKind, LoramergeError) and UnsupportedKind.exit_code == 5
