"""PEFT adapters of language models, baked into folders of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter.load import load
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.checkpoint.generic import renaming
from loramerge.errors import AdapterError, FamilyError
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from tests.builders.samples import dense, read_safetensors, relative, safetensors_bytes


def model_folder(folder: Path, tensors: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}), "utf-8")
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return folder


def real_base(folder: Path, shared: Path, *, level: str) -> Path:
    """The weights that the real adapter changes, as GPT-2 stores them: inputs first."""
    arrays, _ = read_safetensors(shared / "adapters" / "peft_gpt2" / "adapter_model.safetensors")
    random = np.random.default_rng(0)
    tensors = {}
    for key, down in arrays.items():
        if key.endswith(".lora_A.weight"):
            stem = key.removesuffix(".lora_A.weight")
            name = stem.removeprefix("base_model.model.transformer.")
            up = arrays[f"{stem}.lora_B.weight"]
            shape = (down.shape[1], up.shape[0])
            tensors[f"{level}{name}.weight"] = random.standard_normal(shape).astype("float32")
    return model_folder(folder, tensors)


@pytest.mark.parametrize("level", ["transformer.", ""])
def test_a_real_adapter_of_gpt2_is_baked_transposed(
    shared_data: Path, tmp_path: Path, level: str
) -> None:
    """With the level that the head adds, and as the published checkpoint is, without it."""
    place = shared_data / "adapters" / "peft_gpt2"
    base = real_base(tmp_path / "base", shared_data, level=level)
    checkpoint = open_checkpoint(base)
    assert checkpoint.candidates == () and checkpoint.family_name == "transformers"
    plan = plan_bake(checkpoint, [(load(place).require_sound(), Weight(0.5))])
    bake(plan, tmp_path / "out")
    before, _ = read_safetensors(base / "model.safetensors")
    after, _ = read_safetensors(tmp_path / "out" / "model.safetensors")
    arrays, _ = read_safetensors(place / "adapter_model.safetensors")
    assert before.keys() == after.keys() and len(before) == 36
    for name in before:
        stem = f"base_model.model.transformer.{name.removeprefix(level)[:-7]}"
        up, down = arrays[f"{stem}.lora_B.weight"], arrays[f"{stem}.lora_A.weight"]
        change = 0.5 * dense(up, down, 32 / 8)
        found = after[name].astype("float64") - before[name]
        assert relative(found, change.T) < 1e-4
        if found.shape[0] == found.shape[1]:  # only fan_in_fan_out tells which way round
            assert relative(found, change) > 0.5
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_base_of_another_model_is_refused(shared_data: Path, tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base", {"model.layers.0.q.weight": np.ones((2, 2), "float32")})
    adapter = load(shared_data / "adapters" / "peft_gpt2")
    with pytest.raises(AdapterError, match="the base lacks 36 modules"):
        plan_bake(open_checkpoint(base), [(adapter, Weight())])
    (base / "config.json").unlink()
    with pytest.raises(FamilyError):
        open_checkpoint(base)


def test_the_hint_names_no_component_that_the_option_refuses(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base", {"model.layers.0.q.weight": np.ones((2, 2), "float32")})
    head = {f"base_model.model.lm_head.lora_{x}.weight": np.ones((2, 2), "f4") for x in "AB"}
    place = tmp_path / "adapter_model.safetensors"
    place.write_bytes(safetensors_bytes(head))
    with pytest.raises(AdapterError, match="the base lacks 1 modules") as caught:
        plan_bake(open_checkpoint(base), [(load(place), Weight())])
    assert "skip_missing='all'" in str(caught.value)


def test_levels_are_found() -> None:
    known = ["h.0.attn", "h.1.attn", "wte"]
    assert renaming(["transformer.h.0.attn"], known)("transformer.h.1.attn") == "h.1.attn"
    assert renaming(["h.0.attn"], [f"transformer.{k}" for k in known])("wte") == "transformer.wte"
    assert renaming(["h.0.attn"], known)("wte") == "wte"
    assert renaming(["a.b"], known)("a.b") == "a.b"


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("sort", ["gpt2", "llama"])
def test_a_sharded_model_merges_as_peft_merges(tmp_path: Path, sort: str) -> None:
    torch: Any = pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    peft: Any = pytest.importorskip("peft")
    torch.manual_seed(0)
    if sort == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=50, n_positions=8, n_embd=12, n_layer=3, n_head=2, tie_word_embeddings=True
        )
        targets, flipped = ["c_attn", "c_proj", "c_fc"], True
    else:
        config = transformers.LlamaConfig(
            vocab_size=50, hidden_size=12, intermediate_size=20, num_hidden_layers=3,
            num_attention_heads=2, num_key_value_heads=1,
        )  # fmt: skip
        targets, flipped = ["q_proj", "v_proj", "down_proj"], False
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "base", max_shard_size="4KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 2
    wrapped = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=2, lora_alpha=6, target_modules=targets, fan_in_fan_out=flipped,
            init_lora_weights=False, rank_pattern={f"1.*{targets[0]}": 4},
        ),
    )  # fmt: skip
    wrapped.save_pretrained(tmp_path / "adapter")
    plan = plan_bake(open_checkpoint(tmp_path / "base"), [(load(tmp_path / "adapter"), Weight())])
    bake(plan, tmp_path / "out")
    merged = wrapped.merge_and_unload()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected, found = dict(merged.named_parameters()), dict(again.named_parameters())
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-6), name
