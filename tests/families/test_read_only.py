"""A family that is verified against nothing: looked at, mixed and resized; not baked, not translated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.errors import FamilyError
from loramerge.families import FAMILIES, Component, Family
from loramerge.families.stacks import (
    Native,
    Row,
    Stack,
    expand,
    native_slots,
    transformer_spellings,
)
from loramerge.stream.plan import plan_bake
from tests.builders.samples import read_safetensors, safetensors_bytes


@pytest.fixture
def unproven() -> Iterator[Family]:
    """Wan with its table written down wrongly: keys and values in each other's places."""
    rows = tuple(
        Row(f"attn1.to_{ours}", "linear", (8, 8), False, Native(f"self_attn.{theirs}"))
        for ours, theirs in (("q", "q"), ("k", "v"), ("v", "k"))
    )
    stacks = (Stack("blocks.{}.", "blocks.{}.", range(2), rows),)
    wrong = replace(
        FAMILIES["wan"],
        build=lambda: (Component("transformer", tuple(expand(stacks, {}))),),
        spellings={"transformer": transformer_spellings("original", native_slots(stacks))},
        verified="",
    )
    with FAMILIES.adding(wrong):
        yield wrong


def adapter(path: Path, seed: int) -> Path:
    random = np.random.default_rng(seed)
    tensors = {
        f"diffusion_model.blocks.{i}.self_attn.{x}.lora_{role}.weight": random.standard_normal(
            (4, 8) if role == "A" else (8, 4), dtype="float32"
        )
        for i in range(2)
        for x in "qkv"
        for role in "AB"
    }
    path.write_bytes(safetensors_bytes(tensors, {}))
    return path


def base(path: Path) -> Path:
    names = [f"blocks.{i}.self_attn.{x}.weight" for i in range(2) for x in "qkv"]
    path.write_bytes(safetensors_bytes({n: np.ones((8, 8), "float32") for n in names}, {}))
    return path


def test_adapters_are_loaded_mixed_and_resized(unproven: Family, tmp_path: Path) -> None:
    a, b = adapter(tmp_path / "a.safetensors", 1), adapter(tmp_path / "b.safetensors", 2)
    found = load(a)
    assert found.family is unproven and not found.info.account.unknown
    lm.save(lm.mix([(lm.load(a), 0.5), (lm.load(b), 0.5)]), tmp_path / "mixed.safetensors")
    lm.save(lm.resize(lm.load(a), rank=2), tmp_path / "small.safetensors")
    mixed, _ = read_safetensors(tmp_path / "mixed.safetensors")
    first, second = (read_safetensors(path)[0] for path in (a, b))
    assert mixed.keys() == first.keys() | {k for k in mixed if k.endswith(".alpha")}
    stem = "diffusion_model.blocks.1.self_attn.k"
    up, down = f"{stem}.lora_B.weight", f"{stem}.lora_A.weight"
    expected = 0.5 * first[up] @ first[down] + 0.5 * second[up] @ second[down]
    assert np.allclose(mixed[up] @ mixed[down], expected, atol=1e-5)  # the scale is folded in


@pytest.mark.parametrize("to", ["diffusers", "kohya", "bare"])
def test_names_are_not_translated(unproven: Family, tmp_path: Path, to: str) -> None:
    path = adapter(tmp_path / "a.safetensors", 1)
    with pytest.raises(FamilyError, match="wan is read-only") as caught:
        save(load(path), tmp_path / "b.safetensors", to=to)
    assert caught.value.expected == "comfyui" and caught.value.exit_code == 4
    assert not (tmp_path / "b.safetensors").exists()


def test_read_only_families_are_not_baked(unproven: Family, tmp_path: Path) -> None:
    """It would be wrong: the table has keys and values swapped."""
    checkpoint = open_checkpoint(base(tmp_path / "base.safetensors"))
    inputs = [(load(adapter(tmp_path / "a.safetensors", 1)), Weight())]
    with pytest.raises(FamilyError, match="wan are read-only"):
        plan_bake(checkpoint, inputs)


def test_every_family_that_is_shipped_is_verified() -> None:
    assert all(found.proven for found in FAMILIES.values())
