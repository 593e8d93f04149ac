"""BFL's control adapters: a widened first layer, biases of the second factor, norms that replace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter import Adapter
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.algebra.mix import mix
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.errors import NotExpressible, Setting, ShapeError
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from tests.builders.flux import Tensors, native_weights, parts_of, write
from tests.builders.kinds import Array
from tests.builders.samples import read_safetensors, relative
from tests.flux.test_bake import single

WIDTH = 16
LAYERS = ("double_blocks.0.img_attn.qkv", "single_blocks.0.linear1", "img_in", "final_layer.linear")
NORM = "double_blocks.0.img_attn.norm.key_norm.scale"


def control(native: Tensors, seed: int, *, times: int = 2) -> Tensors:
    """Factors and biases of some layers; the first takes `times` as many inputs."""
    random = np.random.default_rng(seed)
    tensors: Tensors = {NORM: np.full(WIDTH, 1.5, np.float32)}
    for layer in LAYERS:
        rows, columns = native[f"{layer}.weight"].shape
        columns *= times if layer == "img_in" else 1
        for end, shape in (
            ("lora_A.weight", (4, columns)),
            ("lora_B.weight", (rows, 4)),
            ("lora_B.bias", (rows,)),
        ):
            tensors[f"{layer}.{end}"] = random.standard_normal(shape).astype(np.float32)
    return tensors


def biases(tensors: Tensors) -> dict[str, Array]:
    """Δb by module, as a control adapter says it: lora_B.bias as it is."""
    found: dict[str, Array] = {}
    for layer in LAYERS:
        found |= parts_of(layer, tensors[f"{layer}.lora_B.bias"].astype(np.float64))
    return found


def said(adapter: Adapter) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for site, delta in adapter.deltas.items():
        if site.parameter == "bias":
            dense = delta.dense()
            ends = site.bounds(len(dense))[1:-1]
            found |= dict(zip(site.modules, np.split(dense, ends), strict=True))
    return found


def test_a_sum_keeps_the_biases(tmp_path: Path) -> None:
    native = native_weights(WIDTH)
    one, two = control(native, 0), control(native, 1)
    first, second = (
        load(write(t, tmp_path / f"{i}.safetensors")) for i, t in enumerate((one, two))
    )
    total, _ = mix([(first.require_sound(), Weight()), (second.require_sound(), Weight())])
    for to in ("bare", "comfyui", "diffusers"):
        if to == "diffusers":  # which has no word for norms that replace
            own = {site: d for site, d in total.deltas.items() if not d.facts.replaces}
            total = total.with_deltas(own)
        save(total, tmp_path / f"{to}.safetensors", to=to)
        keys = read_safetensors(tmp_path / f"{to}.safetensors")[0]
        assert sum(key.endswith(".lora_B.bias") for key in keys) >= len(LAYERS)
        assert not any(key.endswith(".diff_b") for key in keys)
        found = said(load(tmp_path / f"{to}.safetensors").require_sound())
        assert found.keys() == biases(one).keys()
        for module, bias in biases(one).items():
            expected = bias + biases(two)[module]
            assert relative(found[module], expected) < 1e-6, module
            assert relative(found[module], bias) > 0.1  # one of them alone


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
def test_the_dialect_that_a_refusal_names_can_be_written(to: str, tmp_path: Path) -> None:
    adapter = load(write(control(native_weights(WIDTH), 0), tmp_path / "a.safetensors"))
    with pytest.raises(NotExpressible) as refused:
        save(adapter, tmp_path / "b.safetensors", to=to)
    (named,) = (part.value for part in refused.value.hint or () if isinstance(part, Setting))
    save(adapter, tmp_path / "c.safetensors", to=named)
    assert len(load(tmp_path / "c.safetensors").require_sound()) == len(adapter)


def test_a_widened_layer_is_refused_with_the_way_out(tmp_path: Path) -> None:
    native = native_weights(WIDTH)
    base = open_checkpoint(single(tmp_path, "", native))
    adapter = load(write(control(native, 0), tmp_path / "a.safetensors")).require_sound()
    with pytest.raises(ShapeError, match="base's shapes") as caught:
        plan_bake(base, [(adapter, Weight())])
    assert "transformer.x_embedder: base [16, 16], adapter [16, 32]" in str(caught.value.module)
    message = str(caught.value)
    assert "control adapters" in message and "drop='transformer.x_embedder'" in message
    thin = native_weights(WIDTH // 2)
    other = open_checkpoint(single(tmp_path, "", thin))
    with pytest.raises(ShapeError) as caught:
        plan_bake(other, [(adapter, Weight())])
    assert "another size or family" in str(caught.value.hint)


def test_into_a_base_of_its_width_it_is_baked_with_biases_and_norms(tmp_path: Path) -> None:
    native = native_weights(WIDTH)
    wide = native["img_in.weight"]
    native["img_in.weight"] = np.hstack([wide, np.zeros_like(wide)])  # as programs widen it
    native[NORM] = np.ones(WIDTH, np.float32)
    tensors = control(native, 0, times=1)
    adapter = load(write(tensors, tmp_path / "a.safetensors")).require_sound()
    bake(
        plan_bake(open_checkpoint(single(tmp_path, "", native)), [(adapter, Weight())]),
        tmp_path / "o.safetensors",
    )
    found, _ = read_safetensors(tmp_path / "o.safetensors")
    for layer in LAYERS:
        up, down = (tensors[f"{layer}.lora_{half}.weight"].astype(np.float64) for half in "BA")
        assert relative(found[f"{layer}.weight"], native[f"{layer}.weight"] + up @ down) < 1e-6
        bias = native[f"{layer}.bias"] + tensors[f"{layer}.lora_B.bias"].astype(np.float64)
        assert relative(found[f"{layer}.bias"], bias) < 1e-6
    assert np.array_equal(found[NORM], tensors[NORM])
