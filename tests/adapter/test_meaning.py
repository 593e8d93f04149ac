"""What a file says: after loading, and after saying it in any other dialect, ΔW is the oracle's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter import Adapter
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.families import Module
from tests.builders import samples
from tests.builders.samples import (
    DIALECTS,
    Array,
    Sample,
    adaptable,
    attention,
    factors_for,
    oracle,
    read,
    relative,
    sayable,
    spell,
    write,
)
from tests.tail import crossed

RANK = 4
ALPHAS: dict[str, float | None] = {
    "absent": None,
    "the rank": 4.0,
    "half the rank": 2.0,
    "odd": 3.7,
    "zero": 0.0,
    "negative": -2.0,
}
BLOCK = "unet.down_blocks.1.attentions.1"
FEW = (
    f"{BLOCK}.transformer_blocks.0.attn1.to_q",
    f"{BLOCK}.transformer_blocks.0.attn1.to_out.0",
    f"{BLOCK}.transformer_blocks.0.ff.net.0.proj",
    f"{BLOCK}.transformer_blocks.0.attn2.to_k",
    f"{BLOCK}.proj_in",  # 1×1 in SD1
    "unet.down_blocks.1.resnets.0.conv1",  # 3×3
    "unet.conv_in",
    "unet.time_embedding.linear_1",
    "text_encoder.text_model.encoder.layers.7.self_attn.q_proj",
    "text_encoder.text_model.encoder.layers.11.mlp.fc2",
)


def some(family: str, *dialects: str) -> dict[str, Module]:
    """A few modules of every sort, or all the places of the positional dialect."""
    if "lora_diffusion" in dialects:
        return sayable("lora_diffusion", family, attention(family))
    return {name: m for name, m in adaptable(family).items() if name in FEW}


def meant(adapter: Adapter) -> dict[str, Array]:
    return {site.name: delta.dense() for site, delta in adapter.deltas.items()}


def worst(found: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """The largest relative error; modules beyond the expected must be zero."""
    assert expected.keys() <= found.keys()
    assert not any(found[name].any() for name in found.keys() - expected.keys())
    return max(relative(found[name], expected[name]) for name in expected)


def place(folder: Path, dialect: str, name: str = "a") -> Path:
    return folder / (name if dialect == "peft" else f"{name}.safetensors")


def written(sample: Sample, folder: Path) -> Path:
    return write(sample, place(folder, sample.dialect))


@pytest.mark.parametrize(
    ("family", "dialect", "alpha"), crossed(["sd15", "sd21"], DIALECTS, ALPHAS)
)
def test_loading_means_what_the_file_says(
    family: str, dialect: str, alpha: str, tmp_path: Path
) -> None:
    modules = some(family, dialect)
    sample = spell(factors_for(modules, rank=RANK, alpha=ALPHAS[alpha]), family, dialect)
    adapter = load(written(sample, tmp_path)).require_sound()
    assert adapter.family is not None and adapter.family.name == family
    assert not adapter.info.account.unknown
    assert adapter.info.dialects == {dialect: len(modules)}
    assert worst(meant(adapter), oracle(sample, modules)) < 1e-12
    for delta in adapter.deltas.values():
        up, down = delta.factors("float64")
        assert relative(up @ down, delta.dense()) < 1e-12


@pytest.mark.parametrize("alpha", ["the rank", "odd"])
@pytest.mark.parametrize("dialect", ["kohya", "diffusers", "diffusers-legacy", "peft"])
@pytest.mark.parametrize("family", ["sdxl", "sdxl-refiner"])
def test_meaning_is_kept_in_the_large_families(
    family: str, dialect: str, alpha: str, tmp_path: Path
) -> None:
    modules = dict(list(adaptable(family).items())[::23])
    sample = spell(factors_for(modules, rank=[2, 3], alpha=ALPHAS[alpha]), family, dialect)
    adapter = load(written(sample, tmp_path)).require_sound()
    assert adapter.family is not None and adapter.family.name == family
    assert worst(meant(adapter), oracle(sample, modules)) < 1e-12
    again = place(tmp_path, "kohya", "again")
    save(adapter, again, to="kohya")
    assert worst(meant(load(again)), oracle(sample, modules)) < 1e-6


@pytest.mark.parametrize(("source", "target", "alpha"), crossed(DIALECTS, DIALECTS, ALPHAS))
def test_every_other_dialect_says_the_same(
    source: str, target: str, alpha: str, tmp_path: Path
) -> None:
    modules = some("sd15", source, target)
    sample = spell(factors_for(modules, rank=RANK, alpha=ALPHAS[alpha]), "sd15", source)
    expected = oracle(sample, modules)
    path = place(tmp_path, target, "b")
    size = save(load(written(sample, tmp_path)), path, to=target)
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    assert size == sum(file.stat().st_size for file in files)
    again = load(path).require_sound()
    assert not again.info.account.unknown
    assert again.info.dialects == {target: len(modules)}
    assert worst(meant(again), expected) < 1e-6
    raw = read(path, "sd15", target)
    if target == "peft":  # written as today's transformers names it
        renamed = {
            k.replace("base_model.model.encoder.", "base_model.model.text_model.encoder."): v
            for k, v in raw.tensors.items()
        }
        raw = Sample(raw.family, raw.dialect, renamed, raw.metadata, raw.configs)
    assert worst(oracle(raw, modules), expected) < 1e-6


@pytest.mark.parametrize(
    ("source", "target", "dtype"), crossed(["kohya", "peft"], DIALECTS, ["float16", "bfloat16"])
)
def test_half_types_are_rounded_once(source: str, target: str, dtype: str, tmp_path: Path) -> None:
    from loramerge.files.dtypes import dtype_of, numpy_dtype

    modules = some("sd15", source, target)
    element = numpy_dtype(dtype_of(dtype))
    factors = factors_for(modules, rank=RANK, alpha=3.7, dtype=element)
    sample = spell(factors, "sd15", source)
    path = place(tmp_path, target, "b")
    save(load(written(sample, tmp_path)), path, to=target)
    again = load(path)
    assert set(again.dtypes()) == {dtype_of(dtype)}
    keeps_alpha = target in ("kohya", "peft")
    unit = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    assert worst(meant(again), oracle(sample, modules)) < (1e-6 if keeps_alpha else unit)


def test_values_are_those_of_the_nearest_float16(tmp_path: Path) -> None:
    name = FEW[0]
    modules = {name: adaptable("sd15")[name]}
    sample = spell(factors_for(modules, rank=RANK, alpha=3.7), "sd15", "kohya")
    save(load(written(sample, tmp_path)), tmp_path / "b", to="diffusers", dtype="F16")
    up = sample.tensors[samples.stem_of("kohya", "sd15", name) + ".lora_up.weight"]
    found = read(tmp_path / "b", "sd15", "diffusers").tensors[f"{name}.lora_B.weight"]
    exact = up.astype(np.float32) * (float(np.float32(3.7)) / RANK)
    assert np.array_equal(found, exact.astype(np.float16))


# --- wrong readings, each of which the check must refuse ----------------------------------------


def misread(
    sample: Sample, modules: Mapping[str, Module], change: Callable[..., Any]
) -> dict[str, Array]:
    found = {}
    for name in modules:
        stem, suffix = samples.stem_of("kohya", "sd15", name), samples.suffixes_of("kohya", name)
        up, down = (sample.tensors[stem + suffix[role]] for role in ("up", "down"))
        alpha = float(sample.tensors[stem + ".alpha"])
        found[name] = change(up, down, alpha, down.shape[0])
    return found


def swapped(up: Array, down: Array, alpha: float, rank: int) -> Array:
    rows = up.copy()
    third = up.shape[0] // 3
    rows[:third], rows[-third:] = up[-third:], up[:third].copy()
    return samples.dense(rows, down, alpha / rank)


WRONG: dict[str, Callable[[Array, Array, float, int], Array]] = {
    "alpha ignored": lambda up, down, alpha, rank: samples.dense(up, down, 1.0),
    "alpha not divided by the rank": lambda up, down, alpha, rank: samples.dense(up, down, alpha),
    "alpha over three ranks": lambda up, down, alpha, rank: samples.dense(
        up, down, alpha / 3 / rank
    ),
    "ratio squared": lambda up, down, alpha, rank: samples.dense(up, down, (alpha / rank) ** 2),
    "root of the rank": lambda up, down, alpha, rank: samples.dense(up, down, alpha / rank**0.5),
    "double scale": lambda up, down, alpha, rank: samples.dense(up, down, 2 * alpha / rank),
    "rows of queries and values swapped": swapped,
    "rank and axes mixed up": lambda up, down, alpha, rank: samples.dense(
        up[:, ::-1], down, alpha / rank
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_reading_would_be_seen(wrong: str, tmp_path: Path) -> None:
    modules = some("sd15")
    sample = spell(factors_for(modules, rank=RANK, alpha=3.7), "sd15", "kohya")
    expected = oracle(sample, modules)
    assert worst(meant(load(written(sample, tmp_path))), expected) < 1e-12
    assert worst(misread(sample, modules, WRONG[wrong]), expected) > 1e-2


# --- two-dimensional factors of 1×1 convolutions, and the other way ----------------------------


def test_flat_factors_of_a_pointwise_convolution_get_its_axes(tmp_path: Path) -> None:
    name, context = f"{BLOCK}.proj_in", f"{BLOCK}.transformer_blocks.0.attn2.to_k"
    full = adaptable("sd15", full=True)
    modules = {name: full[name]._replace(shape=full[name].shape[:2]), context: full[context]}
    sample = spell(factors_for(modules, alpha=1.0), "sd15", "kohya")
    adapter = load(written(sample, tmp_path))
    assert adapter.family is not None
    save(adapter, tmp_path / "b", to="diffusers")
    raw = read(tmp_path / "b", "sd15", "diffusers").tensors
    assert raw[f"{name}.lora_A.weight"].ndim == raw[f"{name}.lora_B.weight"].ndim == 4
    found = meant(load(tmp_path / "b"))[name]
    assert found.shape == full[name].shape
    assert relative(found[:, :, 0, 0], oracle(sample, [name])[name]) < 1e-6


@pytest.mark.parametrize("target", ["diffusers", "diffusers-legacy", "peft", "kohya"])
def test_mixed_ranks_and_alphas_stay_apart(target: str, tmp_path: Path) -> None:
    modules = some("sd15")
    factors = factors_for(modules, rank=[1, 2, 5], alpha=[1.0, 3.7, None, 8.0])
    sample = spell(factors, "sd15", "kohya")
    path = place(tmp_path, target, "b")
    save(load(written(sample, tmp_path)), path, to=target)
    assert worst(meant(load(path)), oracle(sample, modules)) < 1e-6
