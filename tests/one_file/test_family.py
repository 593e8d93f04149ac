"""A family is one file: a made-up one from outside the package works in every verb."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from loramerge.verbs import known_verbs
from tests.builders.samples import Array, read_safetensors, safetensors_bytes
from tests.one_file.outside import Outside

FAMILY = '''
"""Toy: a diffusion transformer of two blocks, whose original stores queries, keys and values fused."""

from loramerge.families import Component, Family, Metadata
from loramerge.families.stacks import (
    Native, Row, Stack, expand, heads, native_slots, transformer_spellings,
)

BLOCK = (
    *(Row(f"attn.to_{x}", "linear", ("w", "w"), True, Native("mix.qkv", part, 3))
      for part, x in enumerate("qkv")),
    Row("attn.to_out.0", "linear", ("w", "w"), True, Native("mix.proj")),
    Row("ff.net.0.proj", "linear", ("4w", "w"), True, Native("mlp.first")),
    Row("ff.net.2", "linear", ("w", "4w"), True, Native("mlp.second")),
)
STACKS = (
    Stack("", "", (0,), (Row("patcher", "linear", ("w", 8), True, Native("toy_in")),)),
    Stack("toy_layers.{}.", "toys.{}.", range(2), BLOCK),
)
FAMILY = Family(
    name="toy",
    title="Toy",
    build=lambda: (Component("transformer", tuple(expand(STACKS, {"w": 16, "4w": 64}))),),
    spellings={"transformer": transformer_spellings("original", native_slots(STACKS))},
    metadata=Metadata("toy-1", "toy", "networks.lora_toy"),
    verified="nothing but this test",
    classes={"transformer": "ToyTransformer2DModel"},
    heads=heads(STACKS),
    sign=r"toys[._]|toy_layers|toy_in|patcher",
    probes=("toy_layers.0.attn.to_q",),
    one_alpha=False,
    programs={"comfyui": "comfyui"},
)
'''
SIZES = {"toy_in": (16, 8), "mix.qkv": (48, 16), "mix.proj": (16, 16), "mlp.first": (64, 16),
         "mlp.second": (16, 64)}  # fmt: skip
LAYERS = ["toy_in", *(f"toys.{i}.{leaf}" for i in range(2) for leaf in SIZES if "." in leaf)]


def size(layer: str) -> tuple[int, int]:
    return SIZES[layer.split(".", 2)[-1] if "." in layer else layer]


def write(path: Path, tensors: dict[str, Array]) -> None:
    path.write_bytes(safetensors_bytes(tensors, {}))


def factors(seed: int, rank: int = 4) -> dict[str, tuple[Array, Array]]:
    random = np.random.default_rng(seed)
    return {
        layer: (
            random.standard_normal((size(layer)[0], rank), "float32"),
            random.standard_normal((rank, size(layer)[1]), "float32"),
        )
        for layer in LAYERS
    }


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    folder = tmp_path_factory.mktemp("family")
    made = Outside(folder, "loramerge.families", "FAMILY", FAMILY)
    random = np.random.default_rng(0)
    weights = {
        f"{layer}.weight": random.standard_normal(size(layer), "float32") for layer in LAYERS
    }
    biases = {f"{layer}.bias": np.zeros(size(layer)[0], "float32") for layer in LAYERS}
    write(folder / "base.safetensors", weights | biases)
    for name, seed in (("a", 1), ("b", 2)):
        write(folder / f"{name}.safetensors", {
            f"diffusion_model.{layer}.{key}": value
            for layer, (up, down) in factors(seed).items()
            for key, value in (("lora_B.weight", up), ("lora_A.weight", down))
        })  # fmt: skip
    write(folder / "bare.safetensors", {
        f"{layer}.{key}": value
        for layer, (up, down) in factors(1).items()
        for key, value in (("lora_B.weight", up), ("lora_A.weight", down))
    })  # fmt: skip
    yield made


def test_the_literal_is_short() -> None:
    assert len(FAMILY.strip().splitlines()) <= 120


def test_it_is_listed(outside: Outside) -> None:
    (row,) = (one for one in outside.json("families") if one["name"] == "toy")
    assert row["components"] == {"transformer": 13} and not row["read_only"]
    assert row["layouts"] == ["diffusers", "original"]


@pytest.mark.parametrize(("name", "dialect"), [("a", "comfyui"), ("bare", "bare")])
def test_its_adapters_are_recognised(outside: Outside, name: str, dialect: str) -> None:
    (found,) = outside.json("inspect", f"{name}.safetensors")
    assert found["family"] == "toy" and found["dialect"] == dialect
    assert not found["unknown_keys"]


def test_mix_and_resize(outside: Outside) -> None:
    outside.run("mix", "a.safetensors:0.5", "b.safetensors:0.5", "-o", "mixed.safetensors")
    outside.run("resize", "a.safetensors", "--rank", "2", "-o", "small.safetensors")
    mixed, _ = read_safetensors(outside.folder / "mixed.safetensors")
    stem = "diffusion_model.toys.1.mlp.first"
    up, down = mixed[f"{stem}.lora_B.weight"], mixed[f"{stem}.lora_A.weight"]
    scale = float(mixed.get(f"{stem}.alpha", np.float32(len(down)))) / len(down)
    want = sum(0.5 * (u @ d) for u, d in (factors(s)["toys.1.mlp.first"] for s in (1, 2)))
    assert np.allclose(scale * (up @ down), want, atol=1e-5)
    small, _ = read_safetensors(outside.folder / "small.safetensors")
    assert len(small[f"{stem}.lora_A.weight"]) == 2


def test_convert_by_the_names_of_its_table(outside: Outside) -> None:
    outside.run("convert", "a.safetensors", "--to", "diffusers", "-o", "split.safetensors")
    split, _ = read_safetensors(outside.folder / "split.safetensors")
    up, down = (split[f"transformer.toy_layers.0.attn.to_k.lora_{x}.weight"] for x in "BA")
    whole = np.matmul(*factors(1)["toys.0.mix.qkv"])
    assert np.allclose(up @ down, whole[16:32], atol=1e-5)
    outside.run("convert", "a.safetensors", "--to", "kohya", "-o", "kohya.safetensors")
    _, metadata = read_safetensors(outside.folder / "kohya.safetensors")
    assert metadata["ss_base_model_version"] == "toy"
    assert metadata["ss_network_module"] == "networks.lora_toy"


def test_bake_equals_the_definition(outside: Outside) -> None:
    outside.run(
        "bake", "--base", "base.safetensors", "a.safetensors:0.5", "-o", "baked.safetensors"
    )
    before, _ = read_safetensors(outside.folder / "base.safetensors")
    after, _ = read_safetensors(outside.folder / "baked.safetensors")
    for layer, (up, down) in factors(1).items():
        want = before[f"{layer}.weight"] + 0.5 * up.astype("float64") @ down
        assert np.allclose(after[f"{layer}.weight"], want, atol=1e-5), layer
        assert (after[f"{layer}.bias"] == before[f"{layer}.bias"]).all()


RECIPE = """
version: 1
steps:
  both: {mix: {adapters: ["a.safetensors:0.5", "b.safetensors:0.5"]}, save: both.safetensors}
  small: {resize: {adapter: both, rank: 2}, save: less.safetensors}
  named: {convert: {adapter: both, to: onetrainer}, save: named.safetensors}
  sound: {heal: {adapter: named}, save: sound.safetensors}
  tuned: {bake: {base: base.safetensors, adapters: [both]}, save: tuned.safetensors}
  merged: {merge: {models: ["base.safetensors:0.5", tuned:0.5]}, save: merged.safetensors}
  found: {extract: {tuned: tuned, base: base.safetensors, rank: 8, to: comfyui}, save: found.safetensors}
  compared: {diff: {a: named, b: found}, save: compared.json}
  copies: {compare: {files: [a.safetensors, both, named]}, save: copies.json}
  seen: {inspect: {files: [named], base: base.safetensors}, save: seen.json}
  told: {card: {file: both}, save: told.md}
  undone: {unbake: {checkpoint: tuned, lora: [both]}, save: undone.safetensors}
  checked: {verify: {file: tuned, base: base.safetensors, lora: [both]}, save: checked.json}
"""
# which need a class of diffusers, or a file of their own beside the family's
OF_A_CLASS = {"train", "preview"}


def test_every_verb_works_with_it(outside: Outside) -> None:
    for name, verb in known_verbs().items():
        assert name in OF_A_CLASS or f"{{{name}: " in RECIPE or not verb.in_recipes, name
    (outside.folder / "all.yaml").write_text(RECIPE, "utf-8")
    outside.run("run", "all.yaml")
    base, tuned, merged, found, undone = (
        read_safetensors(outside.folder / f"{name}.safetensors")[0]
        for name in ("base", "tuned", "merged", "found", "undone")
    )
    for layer in LAYERS:
        change = sum(0.5 * (up @ down) for up, down in (factors(s)[layer] for s in (1, 2)))
        before = base[f"{layer}.weight"]
        assert np.allclose(tuned[f"{layer}.weight"], before + change, atol=1e-5), layer
        assert np.allclose(merged[f"{layer}.weight"], before + change / 2, atol=1e-5), layer
        assert np.allclose(undone[f"{layer}.weight"], before, atol=1e-6), layer
        up, down = (found[f"diffusion_model.{layer}.lora_{x}.weight"] for x in "BA")
        assert np.allclose(up @ down, change, atol=1e-4), layer
    compared = json.loads((outside.folder / "compared.json").read_text("utf-8"))
    assert compared["total"]["relative_distance"] < 1e-5 and compared["modules"] == 13
    copies = json.loads((outside.folder / "copies.json").read_text("utf-8"))
    assert {file["family"] for file in copies["files"]} == {"toy"} and len(copies["copies"]) == 1
    (seen,) = json.loads((outside.folder / "seen.json").read_text("utf-8"))
    assert seen["dialect"] == "onetrainer" and "13 of 13" in seen["base"]["reason"]
    checked = json.loads((outside.folder / "checked.json").read_text("utf-8"))
    assert checked["holds"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OF_A_CLASS))
def test_what_needs_a_class_names_the_families_that_have_one(outside: Outside, name: str) -> None:
    (outside.folder / "pictures").mkdir(exist_ok=True)
    more = {"train": ("--images", "pictures", "--trigger", "x"), "preview": ("--prompt", "x")}
    said = outside.refused(2, name, "--base", "base.safetensors", *more[name])
    assert "found: toy" in said and "sdxl" in said


def test_its_headers_are_edited(outside: Outside) -> None:
    outside.run("meta", "a.safetensors", "--set", "modelspec.title=A", "-o", "titled.safetensors")
    assert read_safetensors(outside.folder / "titled.safetensors")[1]["modelspec.title"] == "A"
