"""Baking into the original single file and into diffusers' folder gives the same network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from tests.builders.flux import (
    LAST,
    NATIVE,
    Tensors,
    diffusers_weights,
    lora_of,
    meaning,
    native_weights,
    write,
)
from tests.builders.samples import read_safetensors
from tests.tail import crossed

WIDTH = 16
HEADS = {"bare": "", "in one file": "model.diffusion_model."}


def single(folder: Path, head: str, native: Tensors) -> Path:
    named = {f"{head}{name}": value for name, value in native.items()}
    return write(named, folder / "flux.safetensors")


def in_folder(folder: Path, native: Tensors) -> Path:
    place = folder / "flux" / "transformer"
    place.mkdir(parents=True)
    write(diffusers_weights(native), place / "diffusion_pytorch_model.safetensors")
    (folder / "flux" / "model_index.json").write_text("{}", "utf-8")
    return folder / "flux"


def fused_adapter(folder: Path, native: Tensors) -> Path:
    """Every layer of the network in kohya's spelling."""
    shapes = {n.replace(".", "_"): native[f"{n}.weight"].shape for n in NATIVE}
    factors = lora_of(shapes, 3, spelled="lora_unet_{}.lora_{}.weight")  # type: ignore[arg-type]
    return write(factors, folder / "adapter.safetensors")


def baked(base: Path, adapter: Path, output: Path) -> Tensors:
    plan = plan_bake(open_checkpoint(base), [(load(adapter).require_sound(), Weight(0.5))])
    bake(plan, output)
    file = output / "transformer" / "diffusion_pytorch_model.safetensors"
    return read_safetensors(file if output.is_dir() else output)[0]


def expected(native: Tensors, adapter: Path) -> Tensors:
    """Diffusers' weights plus half of what the adapter says."""
    change = meaning(read_safetensors(adapter)[0])
    return {
        name: value.astype("float64")
        + (0.5 * change[f"transformer.{name[:-7]}"] if name.endswith(".weight") else 0.0)
        for name, value in diffusers_weights(native).items()
    }


def distance(found: Tensors, wanted: Tensors) -> float:
    assert found.keys() == wanted.keys()
    return max(float(np.abs(found[name] - wanted[name]).max()) for name in wanted)


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize(("head", "spelling"), crossed(HEADS, ["kohya", "onetrainer"]))
def test_both_layouts_agree(tmp_path: Path, head: str, spelling: str) -> None:
    native = native_weights(WIDTH)
    adapter = fused_adapter(tmp_path, native)
    wanted = expected(native, adapter)
    if spelling != "kohya":
        save(load(adapter), tmp_path / "split.safetensors", to=spelling)
        adapter = tmp_path / "split.safetensors"
    one = baked(single(tmp_path, HEADS[head], native), adapter, tmp_path / "one.safetensors")
    back = {name.removeprefix(HEADS[head]): value for name, value in one.items()}
    assert distance(diffusers_weights(back), wanted) < 1e-5
    other = baked(in_folder(tmp_path, native), adapter, tmp_path / "other")
    assert distance(other, wanted) < 1e-5


@pytest.mark.parametrize("wrong", ["q and v", "halves"])
def test_wrong_rows_would_be_seen(tmp_path: Path, wrong: str) -> None:
    native = native_weights(WIDTH)
    adapter = fused_adapter(tmp_path, native)
    one = baked(single(tmp_path, "", native), adapter, tmp_path / "one.safetensors")
    key = "double_blocks.4.img_attn.qkv.weight" if wrong == "q and v" else f"{LAST}.weight"
    parts = np.split(one[key], 3 if wrong == "q and v" else 2)
    one[key] = np.concatenate(parts[::-1])
    assert distance(diffusers_weights(one), expected(native, adapter)) > 0.1


def test_adapters_fused_and_split_are_baked_together(tmp_path: Path) -> None:
    native = native_weights(WIDTH)
    adapter = fused_adapter(tmp_path, native)
    save(load(adapter), tmp_path / "split.safetensors", to="diffusers")
    inputs = [(load(adapter), Weight(0.25)), (load(tmp_path / "split.safetensors"), Weight(0.25))]
    for base in (single(tmp_path, "", native), in_folder(tmp_path, native)):
        plan = plan_bake(open_checkpoint(base), inputs)
        output = tmp_path / f"out{base.suffix}"
        survivals = bake(plan, output)
        assert len(survivals) == sum(len(modules) for modules in NATIVE.values())
        assert all(survival.survived > 0.999 for survival in survivals)


@pytest.mark.parametrize("make", [lambda p, n: single(p, "", n), in_folder])
def test_a_base_is_recognised(tmp_path: Path, make: Callable[[Path, Tensors], Path]) -> None:
    found = open_checkpoint(make(tmp_path, native_weights(4)))
    assert [family.name for family in found.candidates] == ["flux1"]


def test_encoders_in_a_file_that_holds_everything(tmp_path: Path) -> None:
    native = {f"model.diffusion_model.{n}": v for n, v in native_weights(4).items()}
    clip = {
        f"text_encoders.clip_l.transformer.text_model.encoder.layers.{i}.{leaf}.{parameter}": (
            np.ones((4, 4) if parameter == "weight" else 4, "float32")
        )
        for i in range(12)
        for leaf in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                     "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
        for parameter in ("weight", "bias")
    }  # fmt: skip
    t5 = {
        f"text_encoders.t5xxl.transformer.encoder.block.{i}.layer.{leaf}.weight": np.ones(
            (4, 4), "float32"
        )
        for i in range(24)
        for leaf in ("0.SelfAttention.q", "0.SelfAttention.k", "0.SelfAttention.v",
                     "0.SelfAttention.o", "1.DenseReluDense.wi_0", "1.DenseReluDense.wi_1",
                     "1.DenseReluDense.wo")
    }  # fmt: skip
    base = write({**native, **clip, **t5}, tmp_path / "all.safetensors")
    found = open_checkpoint(base)
    assert found.layouts == {
        "transformer": "bfl", "text_encoder": "comfyui", "text_encoder_2": "comfyui",
    }  # fmt: skip
    stems = {
        "lora_te1_text_model_encoder_layers_3_mlp_fc1": (4, 4),
        "lora_te3_encoder_block_3_layer_0_SelfAttention_q": (4, 4),
    }
    factors = lora_of(stems, 2, spelled="{}.lora_{}.weight")
    # a T5 alone may be of SD3, whose third encoder it is: the header says whose it is
    said = {"modelspec.architecture": "flux-1-dev/lora"}
    adapter = load(write(factors, tmp_path / "a.safetensors", said))
    assert not adapter.info.account.unknown
    plan = plan_bake(found, [(adapter, Weight())])
    assert plan.tensors == 2
