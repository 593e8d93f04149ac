"""Alphas of what is written: one for a component or none, and nothing lost to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from loramerge.adapter import Adapter, Site
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.algebra.mix import mix
from loramerge.algebra.weights import Weight
from tests.builders.samples import adaptable, attention, factors_for, read_safetensors, spell, write

MODULES = {n: m for n, m in attention("sd15").items() if n.startswith("unet.")}
VECTOR = Weight(blocks=(1.0, *(0.3,) * 6, 0.7, *(0.9,) * 9))


def source(folder: Path, **options: Any) -> Adapter:
    return load(
        write(spell(factors_for(MODULES, **options), "sd15", "kohya"), folder / "in.safetensors")
    )


def worst(found: Adapter, expected: dict[Site, Any]) -> float:
    """Largest relative error of a module."""
    assert found.deltas.keys() == expected.keys()
    return max(
        float(np.linalg.norm(d.dense() - expected[s]) / np.linalg.norm(expected[s]))
        for s, d in found.deltas.items()
    )


def weighted(adapter: Adapter, weight: Weight) -> dict[Site, Any]:
    of = weight.on(adapter)
    return {s: of(s) * d.dense() for s, d in adapter.deltas.items()}


def alphas(path: Path) -> list[float]:
    tensors, _ = read_safetensors(path)
    return sorted({float(v) for k, v in tensors.items() if k.endswith(".alpha")})


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("alpha", [None, 2.0, [1.0, 3.0, None]])
def test_float32_output_is_float32(tmp_path: Path, dtype: Any, alpha: Any) -> None:
    """A wider type is asked for so that nothing is rounded to the narrow one on the way."""
    adapter = source(tmp_path, dtype=dtype, alpha=alpha)
    mixed, _ = mix([(adapter, VECTOR)])
    save(mixed, tmp_path / "out.safetensors", dtype="F32")
    assert worst(load(tmp_path / "out.safetensors"), weighted(adapter, VECTOR)) < 1e-6


@pytest.mark.parametrize("alpha", [None, 2.0, [1.0, 3.0, None]])
@pytest.mark.parametrize("rank", [4, [2, 4, 7]])
def test_one_alpha_or_none(tmp_path: Path, alpha: Any, rank: Any) -> None:
    adapter = source(tmp_path, rank=rank, alpha=alpha)
    path = tmp_path / "out.safetensors"
    mixed, _ = mix([(adapter, VECTOR)])
    save(mixed, path)
    tensors, _ = read_safetensors(path)
    assert len(alphas(path)) == 1
    assert sum(k.endswith(".alpha") for k in tensors) == len(MODULES)
    assert worst(load(path), weighted(adapter, VECTOR)) < 1e-6
    untouched, _ = mix([(adapter, Weight())])
    save(untouched, path, force=True)
    assert (
        read_safetensors(path)[0].keys() == read_safetensors(tmp_path / "in.safetensors")[0].keys()
    )


@pytest.mark.parametrize("size", [1e-4, 2e-3])
def test_small_values_of_half_types_are_not_pushed_below_their_range(
    tmp_path: Path, size: float
) -> None:
    """up of a late save is tiny; a factor of 1/256 would leave it a few bits."""
    sample = spell(factors_for(MODULES, rank=4, alpha=[1.0, 128.0]), "sd15", "kohya")
    for key, value in sample.tensors.items():
        if not key.endswith(".alpha"):
            scale = size if key.endswith("lora_up.weight") else 1.0
            sample.tensors[key] = (value * scale).astype(np.float16)
    adapter = load(write(sample, tmp_path / "in.safetensors"))
    half = Weight(0.5)
    mixed, _ = mix([(adapter, half)])
    save(mixed, tmp_path / "out.safetensors")
    # values that are subnormal already keep the few bits they have
    assert worst(load(tmp_path / "out.safetensors"), weighted(adapter, half)) < 1e-3


def test_the_modules_of_sd15_are_those_of_a_trainer() -> None:
    assert len(MODULES) < len(adaptable("sd15"))
