"""A lone file with PEFT's keys is written as a lone file again, where the output is named so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter.load import load
from loramerge.errors import LoramergeError
from tests.builders.commands import Runner
from tests.builders.samples import Array, safetensors_bytes

HEAD = "base_model.model."
UNKNOWN = f"{HEAD}model.layers.0.self_attn.q_proj"
KNOWN = f"{HEAD}down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def _file(path: Path, stem: str, out: int, inner: int, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    tensors: dict[str, Array] = {
        f"{stem}.lora_A.weight": random.standard_normal((2, inner), dtype=np.float32),
        f"{stem}.lora_B.weight": random.standard_normal((out, 2), dtype=np.float32),
    }
    path.write_bytes(safetensors_bytes(tensors))
    return path


@pytest.mark.parametrize(("stem", "size"), [(UNKNOWN, 96), (KNOWN, 640)])
def test_a_sum_is_a_lone_file_that_means_the_same(stem: str, size: int, tmp_path: Path) -> None:
    a = _file(tmp_path / "a.safetensors", stem, size, size)
    b = _file(tmp_path / "b.safetensors", stem, size, size, seed=1)
    mixed = lm.mix([(a, 0.7), (b, -0.3)])
    lm.save(mixed, tmp_path / "c.safetensors")
    found = load(tmp_path / "c.safetensors")
    assert sorted(found.info.order) == [f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"]
    assert found.info.dialects == {"peft": 1} and not found.info.configs
    (one,), (other,) = mixed.deltas.values(), found.deltas.values()
    assert np.allclose(one.dense(), other.dense(), atol=1e-5)


def test_without_the_name_of_a_file_it_is_a_folder(tmp_path: Path) -> None:
    a = _file(tmp_path / "a.safetensors", UNKNOWN, 96, 96)
    lm.save(load(a), tmp_path / "folder")
    assert (tmp_path / "folder" / "adapter_config.json").is_file()
    with pytest.raises(LoramergeError, match="a PEFT adapter is a folder"):
        lm.save(load(tmp_path / "folder"), tmp_path / "b.safetensors")


def test_a_command_writes_it_and_repeats_it(run: Runner, work: Path) -> None:
    _file(work / "lone.safetensors", KNOWN, 640, 640)
    run.ok("resize", "lone.safetensors", "--rank", "1", "-o", "lone-r1.safetensors")
    assert load(work / "lone-r1.safetensors").info.dialects == {"peft": 1}
    run.ok("run", "lone-r1.safetensors")
    run.ok("convert", "lone.safetensors", "--to", "peft", "-o", "again.safetensors")
    run.ok("diff", "lone.safetensors", "again.safetensors")


def test_a_recipe_saves_one(run: Runner, work: Path) -> None:
    _file(work / "lone.safetensors", UNKNOWN, 96, 96)
    (work / "recipe.yaml").write_text(
        "version: 1\ninputs: {a: lone.safetensors}\nsteps:\n"
        "  half: {mix: {adapters: [a:0.5]}, save: half.safetensors}\n"
    )
    run.ok("plan", "recipe.yaml")
    run.ok("run", "recipe.yaml")
    assert load(work / "half.safetensors").info.dialects == {"peft": 1}


def test_two_components_share_it(tmp_path: Path) -> None:
    a = _file(tmp_path / "a.safetensors", KNOWN, 640, 640)
    adapter = load(a)
    keys = {"text_encoder": f"{HEAD}text_model.encoder.layers.0.mlp.fc1"}
    both = lm.mix(
        [(adapter, 1.0), (_file(tmp_path / "b.safetensors", keys["text_encoder"], 3072, 768), 1.0)]
    )
    lm.save(both, tmp_path / "c.safetensors")
    assert len(load(tmp_path / "c.safetensors")) == 2
