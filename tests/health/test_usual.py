"""Unusual but right things are not reported, or only as a note; slips of tools are reported."""

from __future__ import annotations

import json

import numpy as np
import pytest

from loramerge.adapter.load import load
from loramerge.algebra.health import examine
from loramerge.algebra.health.neighbours import place_of
from tests.builders.samples import (
    attention,
    make,
    read_safetensors,
    safetensors_bytes,
    stem_of,
    write,
)
from tests.health.faults import ALPHA, DOWN, UP


def _findings(path):
    adapter = load(path)
    found = [*adapter.info.problems, *examine(adapter).problems]
    return {problem.code: problem for problem in found}


def _sample(family="sd15", rank=4, keep=lambda name: True, **more):
    modules = {n: m for n, m in attention(family).items() if keep(n)}
    sample = make(family, "kohya", modules, alpha=None, **more)
    for key in [k for k in sample.tensors if k.endswith(DOWN)]:
        stem = key.removesuffix(DOWN)
        random = np.random.default_rng(len(key))
        up, down = sample.tensors[stem + UP], sample.tensors[key]
        sample.tensors[stem + UP] = random.normal(size=(len(up), rank, *up.shape[2:])).astype("f4")
        sample.tensors[key] = random.normal(size=(rank, *down.shape[1:])).astype("f4")
        sample.tensors[stem + ALPHA] = np.array(float(rank), "f4")
    return sample


def _stems(sample):
    return [key.removesuffix(DOWN) for key in sample.tensors if key.endswith(DOWN)]


def _cut(sample, stem, rank):
    sample.tensors[stem + UP] = sample.tensors[stem + UP][:, :rank]
    sample.tensors[stem + DOWN] = sample.tensors[stem + DOWN][:rank]


def test_ranks_that_differ_at_one_scale(tmp_path):
    """sd-scripts' dynamic resize: alpha follows the rank."""
    sample = _sample()
    for number, stem in enumerate(_stems(sample)):
        rank = 1 + number % 4
        _cut(sample, stem, rank)
        sample.tensors[stem + ALPHA] = np.array(0.5 * rank, "f4")
    sample.metadata |= {"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}
    assert not _findings(write(sample, tmp_path / "a.safetensors")).keys() & {
        "alpha-odd", "alpha-not-as-trained",
    }  # fmt: skip


def test_ranks_that_differ_at_one_alpha(tmp_path):
    """PEFT's rank_pattern: alpha stays."""
    sample = _sample()
    for number, stem in enumerate(_stems(sample)):
        _cut(sample, stem, 1 + number % 4)
    assert "alpha-odd" not in _findings(write(sample, tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    "arguments", ["rs_lora=True", '{"rs_lora": "True"}', '{"block_dims": "1"}']
)
def test_alphas_that_the_header_explains(tmp_path, arguments):
    sample = _sample()
    for stem in _stems(sample):
        sample.tensors[stem + ALPHA] = np.array(8.0, "f4")
    sample.metadata |= {"ss_network_dim": "4", "ss_network_alpha": "4"}
    path = write(sample, tmp_path / "a.safetensors")
    assert "alpha-not-as-trained" in _findings(path)
    sample.metadata["ss_network_args"] = arguments
    assert _findings(write(sample, tmp_path / "b.safetensors")) == {}


@pytest.mark.parametrize(
    "keep",
    [
        lambda n: "up_blocks" in n,
        lambda n: "unet" in n and "attn2" in n,
        lambda n: "text_encoder" not in n and "mid_block" not in n and "down_blocks.0" not in n,
        lambda n: "text_encoder" not in n or int(n.split("layers.")[1].split(".")[0]) < 8,
    ],
)
def test_layers_that_were_not_trained_are_not_lost(tmp_path, keep):
    """Whole kinds of layers, levels and ranges of blocks."""
    assert "layer-lost" not in _findings(write(_sample(keep=keep), tmp_path / "a.safetensors"))


def test_the_layer_that_no_gradient_reaches_is_a_note(tmp_path):
    sample = _sample("sdxl", keep=lambda n: "text_encoder" in n)
    name = "text_encoder.text_model.encoder.layers.11.mlp.fc1"
    sample.tensors[stem_of("kohya", "sdxl", name) + UP][:] = 0
    found = _findings(write(sample, tmp_path / "a.safetensors"))
    assert found.keys() == {"untrained-as-usual", "only-text-encoder"}
    problem = found["untrained-as-usual"]
    assert problem.severity == "note" and problem.module == name and "CLIP-L" in problem.message
    name = name.replace("layers.11", "layers.10")
    sample.tensors[stem_of("kohya", "sdxl", name) + UP][:] = 0
    assert _findings(write(sample, tmp_path / "b.safetensors"))["untrained"].severity == "warning"


def test_one_of_two_text_encoders(tmp_path):
    sample = _sample("sdxl", keep=lambda n: "text_encoder_2" not in n and "attn" in n)
    found = _findings(write(sample, tmp_path / "a.safetensors"))
    assert found.keys() == {"text-encoder-missing"}
    assert "text_encoder_2" in found["text-encoder-missing"].message
    sample = _sample("sdxl", keep=lambda n: "text_encoder" not in n)
    assert _findings(write(sample, tmp_path / "b.safetensors")) == {}


def test_the_configuration_of_a_peft_folder(tmp_path):
    from loramerge.adapter.save import save

    path = write(_sample(keep=lambda n: "unet" in n), tmp_path / "a.safetensors")
    save(load(path), tmp_path / "peft", to="peft")
    assert _findings(tmp_path / "peft") == {}
    file = tmp_path / "peft" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"r": 16, "rank_pattern": {}}))
    found = _findings(tmp_path / "peft")
    assert "rank-not-as-configured" in found and "16" in found["rank-not-as-configured"].message


def test_magnitudes_after_a_resize_of_sd_scripts(tmp_path):
    sample = _sample(keep=lambda n: "unet" in n)
    for stem in _stems(sample):
        up = sample.tensors[stem + UP]
        sample.tensors[stem + ".dora_scale"] = np.ones((len(up), *(1,) * (up.ndim - 1)), "f4")
    assert "magnitudes-stale" not in _findings(write(sample, tmp_path / "a.safetensors"))
    sample.metadata["ss_training_comment"] = "dimension is resized from 8 to 4; mine"
    assert "magnitudes-stale" in _findings(write(sample, tmp_path / "b.safetensors"))


def test_zeros_that_fill_up(tmp_path):
    """PEFT's `cat`, where one of the adapters lacks some modules."""
    sample = _sample()
    for stem in _stems(sample)[:5]:
        sample.tensors[stem + UP][:, 2:] = 0
    assert _findings(write(sample, tmp_path / "a.safetensors")) == {}
    sample.tensors[_stems(sample)[9] + UP][:, 1] = 0
    assert _findings(write(sample, tmp_path / "b.safetensors")).keys() == {"dead-ranks"}


def test_names_without_a_family(tmp_path):
    random = np.random.default_rng(0)
    arrays = {
        f"model.layers.{n}.{layer}.lora_{end}.weight": random.normal(size=shape).astype("f4")
        for n in range(9)
        for layer in ("self_attn.q_proj", "mlp.down")
        for end, shape in (("A", (4, 16)), ("B", (16, 4)))
    }
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes(arrays, {}))
    assert "layer-lost" not in _findings(path)
    for end in "AB":
        del arrays[f"model.layers.4.mlp.down.lora_{end}.weight"]
    path.write_bytes(safetensors_bytes(arrays, {}))
    found = _findings(path)
    assert "model.layers.4.mlp.down" in found["layer-lost"].module
    assert read_safetensors(path)


@pytest.mark.parametrize(
    ("name", "block", "layer"),
    [
        ("unet.up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_out.0",
         "unet.up_blocks.1.attentions.2.transformer_blocks.0", "attn1.to_out.0"),
        ("unet.mid_block.attentions.0.transformer_blocks.3.ff.net.0.proj",
         "unet.mid_block.attentions.0.transformer_blocks.3", "ff.net.0.proj"),
        ("transformer.h.11.mlp.c_proj", "transformer.h.11", "mlp.c_proj"),
        ("transformer.transformer_blocks.7.img_mlp.net.2", "transformer.transformer_blocks.7",
         "img_mlp.net.2"),
        ("unet.conv_in", "unet", "conv_in"),
        ("single", "single", "single"),
    ],
)  # fmt: skip
def test_places(name, block, layer):
    place = place_of(name)
    assert (place.block, place.layer) == (block, layer)
