"""Mixing and resizing: ranks, errors and bytes count as the dialect written stores them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.algebra.compare import compare
from loramerge.algebra.mix import mix
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.resize import resize
from loramerge.algebra.weights import Weight
from loramerge.dialects import DIALECTS
from loramerge.steps.parameters import Context
from loramerge.steps.references import Reference
from loramerge.verbs import mix as mix_verb
from loramerge.verbs.resize import Resize
from loramerge.verbs.resize import resize as resize_verb
from tests.builders.flux import Tensors, dense, lora_of, meaning, worst, write
from tests.builders.samples import read_safetensors

SHAPES = {
    "double_blocks_0_img_attn_qkv": (96, 32),
    "single_blocks_1_linear1": (224, 32),
    "single_blocks_1_linear2": (32, 160),
}


def fused(folder: Path, name: str, rank: int, seed: int) -> Path:
    made = lora_of(SHAPES, rank, spelled="lora_unet_{}.lora_{}.weight", seed=seed)
    return write(made, folder / f"{name}.safetensors")


def split(folder: Path, name: str, rank: int, seed: int) -> Path:
    stems = {f"attn.to_{x}": (32, 32) for x in "qkv"} | {"proj_mlp": (128, 32)}
    names = {f"transformer.single_transformer_blocks.1.{m}": s for m, s in stems.items()}
    made = lora_of(names, rank, spelled="{}.lora_{}.weight", seed=seed)
    renamed = {
        k.replace("lora_up", "lora_B").replace("lora_down", "lora_A"): v for k, v in made.items()
    }
    return write(renamed, folder / f"{name}.safetensors")


def ranks_stored(tensors: Tensors) -> set[int]:
    return {v.shape[0] for k, v in tensors.items() if ".lora_down." in k or ".lora_A." in k}


def test_a_fused_file_resized_to_8_is_stored_at_8_and_is_smaller(tmp_path: Path) -> None:
    path = fused(tmp_path, "a", 16, 1)
    lm.save(lm.resize(lm.load(path), rank=8), tmp_path / "b.safetensors")
    tensors, _ = read_safetensors(tmp_path / "b.safetensors")
    assert ranks_stored(tensors) == {8}
    assert (tmp_path / "b.safetensors").stat().st_size < path.stat().st_size
    whole = meaning(read_safetensors(path)[0])
    small = meaning(tensors)
    heads = [f"transformer.transformer_blocks.0.attn.to_{x}" for x in "qkv"]
    joined = np.concatenate([whole[h] for h in heads])
    tail = np.linalg.svd(joined, compute_uv=False)[8:]
    found = np.linalg.norm(np.concatenate([small[h] for h in heads]) - joined)
    assert found == pytest.approx(float(np.linalg.norm(tail)), rel=1e-5)  # Eckart and Young


@pytest.mark.parametrize("target", ["kohya", "diffusers", "comfyui", "onetrainer"])
def test_a_split_file_is_cut_as_the_target_stores_it(tmp_path: Path, target: str) -> None:
    adapter = load(split(tmp_path, "a", 4, 2))
    small, combined = resize(adapter, RankRule(rank=3), target=DIALECTS[target])
    save(small, tmp_path / "b.safetensors", to=target)
    tensors, _ = read_safetensors(tmp_path / "b.safetensors")
    assert ranks_stored(tensors) == {3}
    expected = meaning(read_safetensors(tmp_path / "a.safetensors")[0])
    found = meaning(tensors)
    lost = sum(float(np.sum((found[n] - expected[n]) ** 2)) for n in expected)
    whole = sum(float(np.sum(v**2)) for v in expected.values())
    assert combined.relative_error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("target", ["kohya", "diffusers", None])
def test_fused_and_split_are_mixed_exactly(tmp_path: Path, target: str | None) -> None:
    a, b = fused(tmp_path, "a", 3, 3), split(tmp_path, "b", 2, 4)
    dialect = DIALECTS[target] if target else None
    result, _ = mix([(load(a), Weight(0.7)), (load(b), Weight(-0.3))], target=dialect)
    one, two = meaning(read_safetensors(a)[0]), meaning(read_safetensors(b)[0])
    expected = {n: 0.7 * v - (0.3 * two[n] if n in two else 0.0) for n, v in one.items()}
    assert worst(dense(result), expected) < 1e-6
    save(result, tmp_path / "c.safetensors", to=target or "kohya")
    assert worst(meaning(read_safetensors(tmp_path / "c.safetensors")[0]), expected) < 1e-5


def test_a_weight_of_one_part_cuts_and_joins_at_the_same_rank(tmp_path: Path) -> None:
    path = fused(tmp_path, "a", 3, 5)
    weight = Weight(match=(("*.to_q", 0.5),))
    result, _ = mix([(load(path), weight)], target=DIALECTS["kohya"])
    save(result, tmp_path / "b.safetensors", to="kohya")
    tensors, _ = read_safetensors(tmp_path / "b.safetensors")
    expected = {
        n: v * (0.5 if n.endswith(".to_q") else 1.0)
        for n, v in meaning(read_safetensors(path)[0]).items()
    }
    assert ranks_stored(tensors) == {3}
    assert worst(meaning(tensors), expected) < 1e-6


def test_the_same_change_fused_and_split_is_equal(tmp_path: Path) -> None:
    path = fused(tmp_path, "a", 3, 6)
    save(load(path), tmp_path / "b.safetensors", to="diffusers")
    found = compare(load(path), load(tmp_path / "b.safetensors"))
    assert not found.only_a and not found.only_b
    assert found.total.cosine == pytest.approx(1.0)
    assert found.shared.distance < 1e-6


@pytest.mark.parametrize("to", ["kohya", "diffusers"])
def test_a_file_is_never_larger_than_predicted(tmp_path: Path, to: str) -> None:
    paths = [fused(tmp_path, "a", 3, 7), split(tmp_path, "b", 2, 8)]
    parameters = mix_verb.Mix(
        adapters=tuple(Reference(str(path)) for path in paths),
        to=to,
        output=str(tmp_path / "c.safetensors"),
    )
    predicted = mix_verb.predict(parameters, Context())
    made = mix_verb.mix(parameters, Context())
    assert made.size is not None and predicted.size is not None
    assert made.size <= predicted.size


def test_a_budget_counts_the_bytes_of_the_target(tmp_path: Path) -> None:
    path = fused(tmp_path, "a", 16, 9)
    output = tmp_path / "b.safetensors"
    adapter = Reference(str(path))
    verb = Resize(adapter=adapter, max_size="40KB", to="diffusers", output=str(output))
    made = resize_verb(verb, Context())
    assert made.size is not None and 25_000 < made.size <= 40_000
    assert output.stat().st_size == made.size
