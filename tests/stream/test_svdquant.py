"""Bases of SVDQuant in the forms of nunchaku: what they hold, and adapters that join their branches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter import Full, Site
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.checkpoint.storages.svdquant import STORAGE
from loramerge.checkpoint.svdquant_names import modules_of
from loramerge.errors import FormatError, NumericsError, Setting, UnsupportedKind
from loramerge.files.reader import TensorFile
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from loramerge.stream.reading import weights_of
from tests.builders import nunchaku
from tests.builders.bases import read_safetensors, write_safetensors
from tests.builders.deltas import adapter, full, low_rank, tensor

Array = np.ndarray[Any, Any]


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
@pytest.mark.parametrize("words", [nunchaku.FIRST, nunchaku.LATER], ids=["first", "later"])
def test_weights_are_those_of_every_address(tmp_path: Path, precision: str, words: Any) -> None:
    path = tmp_path / "a.safetensors"
    made, want = nunchaku.layer(
        rng(), "blocks.0.mlp", 256, 128, precision=precision, words=words, rank=32
    )
    write_safetensors(path, made)
    found = STORAGE.weights(TensorFile(path).tensors)["blocks.0.mlp.weight"]
    assert found.shape == (256, 128) and found.dtype == ("I4" if precision == "int4" else "F4")
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-5, atol=1e-7)
    part = found.held.packing.weights(100, 141)
    np.testing.assert_allclose(part, want[100:141], rtol=1e-5, atol=1e-7)
    bias = STORAGE.weights(TensorFile(path).tensors)["blocks.0.mlp.bias"].numpy()
    stored = made["blocks.0.mlp.bias"].astype("float32")
    assert np.array_equal(bias, stored[nunchaku.at_scales(256, 1).reshape(-1)])


@pytest.mark.parametrize("splits", [1, 3, 6])
def test_modulations_are_those_of_every_address(tmp_path: Path, splits: int) -> None:
    path = tmp_path / "a.safetensors"
    stem = {
        1: "adaLN.1",
        3: "single_transformer_blocks.0.norm.linear",
        6: "transformer_blocks.0.norm1.linear",
    }[splits]
    made, want, bias = nunchaku.zero_points(rng(), stem, 24, 128, splits)
    # one layer of nunchaku's own says that modulations alternate
    made |= nunchaku.layer(rng(), "transformer_blocks.0.qkv_proj", 384, 128)[0]
    write_safetensors(path, made)
    found = STORAGE.weights(TensorFile(path).tensors)
    np.testing.assert_allclose(found[f"{stem}.weight"].numpy(), want, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found[f"{stem}.bias"].numpy(), bias, rtol=1e-6)


@pytest.fixture(scope="module")
def flux(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Array], dict[str, Array]]:
    """A file of the first layout, its tensors, and the weights by diffusers' names."""
    path = tmp_path_factory.mktemp("nunchaku") / "flux.safetensors"
    made, weights = nunchaku.flux()
    write_safetensors(path, made, {"model_class": "NunchakuFluxTransformer2dModel"})
    return path, made, weights


MODULES = {
    "transformer_blocks.0.attn.to_q": (128, 128),
    "transformer_blocks.0.attn.to_v": (128, 128),
    "transformer_blocks.0.ff.net.0.proj": (512, 128),
    "transformer_blocks.1.attn.to_add_out": (128, 128),
    "single_transformer_blocks.5.proj_out": (128, 640),
    "single_transformer_blocks.5.proj_mlp": (512, 128),
}


def test_an_adapter_joins_the_branches(tmp_path: Path, flux: Any) -> None:
    path, before, weights = flux
    out = tmp_path / "out.safetensors"
    a = adapter(
        {f"transformer.{m}": low_rank(s, 4, seed=i) for i, (m, s) in enumerate(MODULES.items())},
        families=["flux1"],
    )
    checkpoint = open_checkpoint(path)
    assert checkpoint.family_name == "flux1"
    found = bake(plan_bake(checkpoint, [(a, Weight(0.7))]), out, threads=1)
    assert {s.module.removeprefix("transformer.") for s in found} == {*MODULES}
    assert min(s.survived for s in found) > 0.999 and max(s.relative_error for s in found) < 0.01
    now = read_safetensors(out)[0]
    assert list(now) == list(before)
    new = open_checkpoint(out)
    for module in MODULES:
        (place,) = new.slots[f"transformer.{module}", "weight"]
        got = weights_of(place, "float64")
        asked = 0.7 * a.deltas[Site((f"transformer.{module}",))].dense()
        error = np.linalg.norm(got - weights[f"{module}.weight"] - asked)
        assert error < 0.01 * np.linalg.norm(asked), module
    changed = {name for name in now if now[name].tobytes() != before[name].tobytes()}
    assert {name.rpartition(".")[2] for name in changed} == {"lora_down", "lora_up"}
    ranks = {
        "transformer_blocks.0.qkv_proj": 32,  # two factors of rank 4 after one of 16, filled up
        "transformer_blocks.0.mlp_fc1": 32,
        "transformer_blocks.0.mlp_fc2": 32,  # its kernel gets the branch of the other
        "transformer_blocks.0.out_proj": 16,
        "transformer_blocks.1.out_proj_context": 32,
        "single_transformer_blocks.5.out_proj": 32,
        "single_transformer_blocks.5.mlp_fc2": 32,
        "single_transformer_blocks.5.mlp_fc1": 32,
        "single_transformer_blocks.5.qkv_proj": 16,
    }
    for stem, rank in ranks.items():
        assert now[f"{stem}.lora_up"].shape[1] == now[f"{stem}.lora_down"].shape[1] == rank, stem


def joined(
    path: Path, out: Path, deltas: dict[str, Any], family: str = "flux1", **options: Any
) -> Any:
    a = adapter({f"transformer.{m}": d for m, d in deltas.items()}, families=[family])
    return bake(plan_bake(open_checkpoint(path), [(a, Weight())], **options), out, threads=1)


@pytest.mark.long_tail
def test_modulations_are_quantised_again(tmp_path: Path, flux: Any) -> None:
    path, before, weights = flux
    out, stem = tmp_path / "out.safetensors", "transformer_blocks.0.norm1.linear"
    delta = low_rank((768, 128), 2)
    delta.down.numpy()[:, 64:] = 0  # the second group of every row stays as it is
    delta.up.numpy()[100:] = 0
    (found,) = joined(path, out, {stem: delta.scaled(0.05)})
    now = read_safetensors(out)[0]
    changed = {name for name in now if now[name].tobytes() != before[name].tobytes()}
    assert changed <= {f"{stem}.{word}" for word in ("qweight", "wscales", "wzeros")}
    (place,) = open_checkpoint(out).slots[f"transformer.{stem}", "weight"]
    got, asked = weights_of(place, "float64"), delta.scaled(0.05).dense()
    step = 0.011 + np.abs(asked).max() / 7
    assert np.abs(got - weights[f"{stem}.weight"] - asked).max() < step
    np.testing.assert_allclose(got[:, 64:], weights[f"{stem}.weight"][:, 64:], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(got[100:], weights[f"{stem}.weight"][100:], rtol=1e-5, atol=1e-7)
    error = np.linalg.norm(got - weights[f"{stem}.weight"] - asked) / np.linalg.norm(asked)
    assert found.relative_error == pytest.approx(error, rel=1e-3)


@pytest.mark.long_tail
def test_biases_are_added_in_their_order(tmp_path: Path, flux: Any) -> None:
    path, before, _ = flux
    out, stem = tmp_path / "out.safetensors", "transformer_blocks.3.attn.to_k"
    change = np.zeros(128, "float32")
    change[[1, 8, 9, 77]] = 1, 2, 4, 8
    joined(path, out, {f"{stem}:bias": Full.of(tensor(change), "diff_b")})
    name = "transformer_blocks.3.qkv_proj.bias"
    difference = read_safetensors(out)[0][name].astype("float64") - before[name].astype("float64")
    order = nunchaku.at_scales(384, 1).reshape(-1)[128:256]
    np.testing.assert_allclose(difference[order], change, atol=0.05)
    assert np.count_nonzero(difference) == 4


@pytest.mark.long_tail
def test_factors_of_the_inputs_that_are_equal_are_stored_once(tmp_path: Path, flux: Any) -> None:
    path, *_ = flux
    out = tmp_path / "out.safetensors"
    one = low_rank((128, 128), 16)
    deltas = {f"transformer_blocks.2.attn.to_{x}": one for x in "qkv"}
    joined(path, out, deltas)
    assert read_safetensors(out)[0]["transformer_blocks.2.qkv_proj.lora_up"].shape[1] == 32


@pytest.mark.long_tail
def test_what_has_no_low_rank_is_refused(tmp_path: Path, flux: Any) -> None:
    path, *_ = flux
    change = full((128, 128), role="diff")
    with pytest.raises(UnsupportedKind, match="only factors can join"):
        joined(path, tmp_path / "out.safetensors", {"transformer_blocks.0.attn.to_q": change})
    with pytest.raises(FormatError, match="4 bits only"):
        norm = {"transformer_blocks.0.norm1.linear": low_rank((768, 128), 2)}
        joined(path, tmp_path / "out.safetensors", norm, wider="BF16")


def test_smoothing_that_lies_in_the_layer_before_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    made = {}
    for block, folded in ((0, False), (1, True)):
        head = f"transformer_blocks.{block}."
        made |= nunchaku.layer(rng(), head + "qkv_proj", 384, 128)[0]
        made |= nunchaku.layer(rng(), head + "out_proj", 128, 128)[0]
        if folded:
            made[f"{head}out_proj.smooth"] = np.ones_like(made[f"{head}out_proj.smooth"])
    write_safetensors(path, made)
    found = STORAGE.weights(TensorFile(path).tensors)
    found["transformer_blocks.0.attn.to_v.weight"].numpy()
    for name in ("to_v", "to_out.0"):
        with pytest.raises(FormatError, match="smoothing"):
            found[f"transformer_blocks.1.attn.{name}.weight"].numpy()


@pytest.mark.long_tail
@pytest.mark.parametrize("fused", [True, False], ids=["nunchaku", "diffusers"])
def test_all_layers_of_later_files_get_one_rank(tmp_path: Path, fused: bool) -> None:
    path, out = tmp_path / "base" / "a.safetensors", tmp_path / "out"
    made, weights = nunchaku.qwen(fused=fused)
    words = json.dumps({"rank": 16, "method": "svdquant"})
    write_safetensors(path, made, {"quantization_config": words})
    config = {"quantization_config": {"svdq_w4a4": {"rank": 16, "group_size": 64}}}
    (path.parent / "config.json").write_text(json.dumps(config))
    delta = low_rank((128, 128), 20)
    module = "transformer_blocks.7.attn.add_v_proj"
    joined(path.parent, out, {module: delta}, "qwen-image")
    now, metadata = read_safetensors(out / "a.safetensors")
    assert {a.shape[1] for name, a in now.items() if ".proj_" in name} == {48}
    assert json.loads(metadata["quantization_config"]) == {"rank": 48, "method": "svdquant"}
    written = json.loads((out / "config.json").read_text())
    assert written == {"quantization_config": {"svdq_w4a4": {"rank": 48, "group_size": 64}}}
    new = open_checkpoint(out)
    for name, asked in ((module, delta.dense()), ("transformer_blocks.8.img_mod.1", 0)):
        got = weights_of(new.slots[f"transformer.{name}", "weight"][0], "float64")
        np.testing.assert_allclose(got, weights[f"{name}.weight"] + asked, rtol=0, atol=0.03)
    same = [name for name in now if ".proj_" not in name]
    assert all(now[name].tobytes() == made[name].tobytes() for name in same)


@pytest.mark.long_tail
def test_the_two_files_of_the_first_layout_are_one_model(tmp_path: Path, flux: Any) -> None:
    _, made, weights = flux
    folder, out = tmp_path / "base", tmp_path / "out"
    parts: dict[str, dict[str, Array]] = {"unquantized_layers": {}, "transformer_blocks": {}}
    for name, array in made.items():
        parts["transformer_blocks" if "blocks." in name else "unquantized_layers"][name] = array
    for name, tensors in parts.items():
        write_safetensors(folder / f"{name}.safetensors", tensors)
    (folder / "config.json").write_text('{"_class_name": "NunchakuFluxTransformer2dModel"}')
    deltas = {
        m: low_rank((128, 128), 2) for m in ("context_embedder", "transformer_blocks.0.attn.to_k")
    }
    joined(folder, out, deltas)
    new = open_checkpoint(out)
    for module, delta in deltas.items():
        got = weights_of(new.slots[f"transformer.{module}", "weight"][0], "float64")
        np.testing.assert_allclose(got, weights[f"{module}.weight"] + delta.dense(), atol=0.03)


@pytest.mark.long_tail
def test_no_wider_type_is_offered_for_modulations(tmp_path: Path, flux: Any) -> None:
    path, *_ = flux
    small = low_rank((768, 128), 2).scaled(1e-4)
    module = "transformer_blocks.0.norm1.linear"
    a = adapter({f"transformer.{module}": small}, families=["flux1"])
    with pytest.raises(NumericsError, match="would be kept") as caught:
        lm.bake(path, [(a, 1.0)], tmp_path / "out.safetensors")
    settings = [one.name for one in caught.value.hint if isinstance(one, Setting)]
    assert set(settings) == {"rounding", "allow_loss"}, settings


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_a_difference_and_a_merge_read_it(tmp_path: Path, precision: str) -> None:
    path, out, plain = (tmp_path / f"{name}.safetensors" for name in ("base", "out", "plain"))
    made, weights = nunchaku.flux(precision=precision)
    write_safetensors(path, made)
    held = STORAGE.weights(TensorFile(path).tensors)
    numbers = {n: np.asarray(t.numpy(), "float32").reshape(t.shape) for n, t in held.items()}
    assert {n for n in weights if "blocks." in n} <= numbers.keys()
    rest = {name: one.astype("float32") for name, one in weights.items() if "blocks." not in name}
    write_safetensors(plain, numbers | rest)
    delta = low_rank((128, 640), 3).scaled(0.1)
    joined(path, out, {"single_transformer_blocks.4.proj_out": delta})
    for base in (path, plain):
        found = lm.extract(out, base, rank=3)
        sizes = {site.name: np.linalg.norm(d.dense()) for site, d in found.deltas.items()}
        one = found.deltas[Site(("transformer.single_transformer_blocks.4.proj_out",))]
        assert sorted(sizes.values())[-2:-1] < [1e-4]  # the others differ by last bits, if at all
        error = np.linalg.norm(one.dense() - delta.dense())
        assert error < 0.02 * np.linalg.norm(delta.dense())
    lm.merge([(plain, 0.5), (path, 0.5)], tmp_path / "merged.safetensors")
    merged = read_safetensors(tmp_path / "merged.safetensors")[0]
    for name, one in numbers.items():
        np.testing.assert_allclose(merged[name], one, rtol=1e-5, atol=1e-6)
    with pytest.raises(FormatError, match="cannot be written"):
        lm.merge([(path, 0.5), (plain, 0.5)], tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("stem", "modules"),
    [
        ("transformer_blocks.2.qkv_proj_context", ["add_q_proj", "add_k_proj", "add_v_proj"]),
        ("single_transformer_blocks.2.mlp_fc1", ["proj_mlp"]),
        ("single_transformer_blocks.2.mlp_fc2", ["mlp_fc2"]),  # columns of proj_out
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_qkv", ["to_q", "to_k", "to_v"]),
        ("layers.0.attention.to_qkv", ["to_q", "to_k", "to_v"]),
        ("noise_refiner.1.feed_forward.net.0.proj", ["w3", "w1"]),  # SwiGLU: the gate is behind
        ("layers.3.mlp.gate_proj", ["gate_proj"]),
    ],
)
def test_layers_are_known_by_their_names(stem: str, modules: list[str]) -> None:
    assert [name.rpartition(".")[2] for name in modules_of(stem)] == modules


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_biases_that_make_up_for_a_shift_are_those_of_the_model(
    tmp_path: Path, precision: str
) -> None:
    """The kernel of the layer after GELU shifts its inputs, if its codes are whole numbers."""
    path, head = tmp_path / "a.safetensors", "single_transformer_blocks.0."
    made = nunchaku.layer(rng(), head + "qkv_proj", 384, 128)[0]
    made |= nunchaku.layer(rng(), head + "out_proj", 128, 128, precision=precision)[0]
    rest, weight = nunchaku.layer(rng(), head + "mlp_fc2", 128, 256, precision=precision)
    write_safetensors(path, made | rest)
    order = nunchaku.at_scales(128, 1).reshape(-1)
    want = sum(one[f"{head}{name}.bias"].astype("float64")[order]
               for one, name in ((made, "out_proj"), (rest, "mlp_fc2")))  # fmt: skip
    if precision == "int4":
        up = rest[f"{head}mlp_fc2.lora_up"].reshape(-1)[nunchaku.at_factor(128, 16, down=False)]
        down = rest[f"{head}mlp_fc2.lora_down"].reshape(-1)[nunchaku.at_factor(16, 256, down=True)]
        branch = up.astype("float64") @ down.astype("float64")
        want = want + nunchaku.SHIFT * (weight - branch).sum(axis=1)
    found = STORAGE.weights(TensorFile(path).tensors)[f"{head}proj_out.bias"]
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-4, atol=1e-5)
