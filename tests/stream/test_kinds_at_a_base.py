"""Kinds that depend on the base: baked block by block, and turned into ordinary differences."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter import Adapter, Delta, Scale
from loramerge.adapter.kinds import make_weight
from loramerge.adapter.kinds.declaration import Stored
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.algebra.mix import mix
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.resize import resize
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.errors import AdapterError, on_command_line
from loramerge.files.tensors import ArrayTensor
from loramerge.steps.references import Reference
from loramerge.stream import rows as stream_rows
from loramerge.stream.against import against
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from loramerge.verbs.mix import Mix
from loramerge.verbs.mix import mix as mix_verb
from loramerge.verbs.resize import Resize
from loramerge.verbs.resize import resize as resize_verb
from tests.builders.bases import modules, read_safetensors, single
from tests.builders.deltas import adapter, low_rank, site

Array = np.ndarray[Any, Any]
Make = Callable[[tuple[int, ...]], Delta]

LINEAR = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.down_blocks.1.resnets.0.conv1"
FUSED = "text_encoder_2.text_model.encoder.layers.3.self_attn.v_proj"
TURNED = "text_encoder_2.text_projection"
PLACES = {"linear": LINEAR, "conv": CONV, "rows of a fused tensor": FUSED, "transposed": TURNED}


def values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def made(parts: Mapping[str, Array], scale: float = 1.0) -> Delta:
    tensors = {role: ArrayTensor(value) for role, value in parts.items()}
    found = make_weight(Stored(tensors, lambda: Scale(scale), "m"))
    assert found is not None
    return found.delta


def _factors(shape: tuple[int, ...], rank: int = 2) -> dict[str, Array]:
    ones = (1,) * (len(shape) - 2)
    return {"up": values(shape[0], rank, *ones), "down": values(rank, *shape[1:])}


def dora(axis: int) -> Make:
    def make(shape: tuple[int, ...]) -> Delta:
        size = [1] * len(shape)
        size[axis] = shape[axis]
        return made({**_factors(shape), "dora_scale": np.abs(values(*size)) + 0.5})

    return make


def oft(shape: tuple[int, ...]) -> Delta:
    return made({"oft_blocks": 0.3 * values(shape[0] // 4, 4, 4), "alpha": np.float32(0)})


def boft(shape: tuple[int, ...]) -> Delta:
    return made({"oft_blocks": 0.3 * values(2, shape[0] // 2, 2, 2), "alpha": np.float32(0)})


def ia3(on_input: bool) -> Make:
    def make(shape: tuple[int, ...]) -> Delta:
        return made(
            {"ia3_weight": values(shape[int(on_input)]), "on_input": np.array(on_input, np.int64)}
        )

    return make


def glora(shape: tuple[int, ...]) -> Delta:
    inside = shape[1]
    return made(
        {"a1": values(inside, 2), "a2": values(2, inside), "b1": values(shape[0], 2),
         "b2": values(2, *shape[1:])}
    )  # fmt: skip


KINDS: dict[str, Make] = {
    "dora-out": dora(0), "dora-in": dora(1), "oft": oft, "boft": boft, "ia3-out": ia3(False),
    "ia3-in": ia3(True), "glora": glora,
}  # fmt: skip


def world(tmp_path: Path) -> tuple[Path, dict[str, Array]]:
    base = single(tmp_path / "base.safetensors", "sdxl")
    return base.path, {n: base.weights[f"{n}.weight"].astype(np.float64) for n in PLACES.values()}


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_rows, "BLOCK_ELEMENTS", 50)  # borders that no block of rows heeds


@pytest.mark.parametrize("kind", KINDS)
def test_baking_block_by_block_gives_the_dense_sum(kind: str, tmp_path: Path) -> None:
    path, weights = world(tmp_path)
    known = modules("sdxl")
    deltas = {name: KINDS[kind](known[name].shape) for name in PLACES.values()}
    loras = {name: low_rank(known[name].shape, 2, 7) for name in PLACES.values()}
    inputs = [
        (adapter(deltas, families=["sdxl"]), Weight(0.7)),
        (adapter(loras, families=["sdxl"]), Weight(-0.4)),
    ]
    plan = plan_bake(open_checkpoint(path), inputs)
    survivals = {s.module: s for s in bake(plan, tmp_path / "out.safetensors", threads=1)}
    found = read_back(tmp_path / "out.safetensors")
    for place, name in PLACES.items():
        asked = 0.7 * deltas[name].dense(weights[name]) - 0.4 * loras[name].dense()
        size = np.linalg.norm(asked) + np.linalg.norm(weights[name])
        error = np.linalg.norm(found[name] - (weights[name] + asked.reshape(weights[name].shape)))
        assert error < 1e-6 * size, place
        assert survivals[name].survived == pytest.approx(1.0, abs=1e-3)


def read_back(path: Path) -> dict[str, Array]:
    """The weights of the places, through the layout that other tests hold to be right."""
    checkpoint = open_checkpoint(path)
    found = {}
    for name in PLACES.values():
        place = checkpoint.slots[name, "weight"][0]
        start, stop = place.rows
        array = place.tensor.numpy()[start:stop].astype(np.float64)
        found[name] = array.T if place.transposed else array
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_at_a_base_it_is_an_ordinary_difference(kind: str, tmp_path: Path) -> None:
    path, weights = world(tmp_path)
    known = modules("sdxl")
    deltas = {name: KINDS[kind](known[name].shape) for name in PLACES.values()}
    a = adapter(deltas, families=["sdxl"], path="a.safetensors")
    b = adapter({n: low_rank(known[n].shape, 2, 7) for n in PLACES.values()}, families=["sdxl"])
    plain = against(a, open_checkpoint(path))
    assert plain.kinds() == {"full": len(PLACES)}
    mixed, _ = mix([(plain, Weight(0.5)), (b, Weight(2.0))], threads=1)
    small, _ = resize(plain, RankRule(rank=3), threads=1)
    for name in PLACES.values():
        change = deltas[name].dense(weights[name])
        flat = change.reshape(change.shape[0], -1)
        expected = 0.5 * flat + 2.0 * b.deltas[site(name)].dense().reshape(flat.shape)
        got = mixed.deltas[site(name)].dense().reshape(flat.shape)
        assert np.linalg.norm(got - expected) < 1e-6 * np.linalg.norm(expected)
        s = np.linalg.svd(flat, compute_uv=False)
        cut = small.deltas[site(name)].dense().reshape(flat.shape)
        tail = np.sqrt((s[3:] ** 2).sum())
        assert np.linalg.norm(cut - flat) == pytest.approx(tail, rel=1e-4, abs=1e-5 * s[0])


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_base_file_module_and_kind_are_named(kind: str) -> None:
    delta = KINDS[kind](modules("sdxl")[LINEAR].shape)
    a = adapter({LINEAR: delta}, families=["sdxl"], path="a.safetensors")
    b = adapter({LINEAR: low_rank(modules("sdxl")[LINEAR].shape, 2)}, families=["sdxl"])
    refused: list[Callable[[], object]] = [
        lambda: mix([(a, Weight()), (b, Weight())]),
        lambda: resize(a, RankRule(rank=1)),
    ]
    if not delta.facts.weighs:
        refused.append(lambda: mix([(a, Weight(0.5))]))
    for step in refused:
        with pytest.raises(AdapterError, match="depends on the base") as caught:
            step()
        error = caught.value
        assert (error.file, error.module) == ("a.safetensors", LINEAR)
        assert error.found == f"kind {delta.kind}" and "--base B" in error.text(on_command_line)
    carried, _ = mix([(a, Weight())])
    assert carried.kinds() == {delta.kind: 1}


def written(tmp_path: Path) -> tuple[Path, Path, Adapter]:
    path, _ = world(tmp_path)
    known = modules("sdxl")
    a = adapter(
        {LINEAR: KINDS["dora-out"](known[LINEAR].shape), CONV: KINDS["dora-in"](known[CONV].shape)},
        families=["sdxl"],
    )
    save(a, tmp_path / "a.safetensors", to="kohya")
    return path, tmp_path / "a.safetensors", a


def test_the_verbs_take_a_base_and_record_it(tmp_path: Path) -> None:
    base, path, a = written(tmp_path)
    weights = read_back(base)
    reference = Reference(str(path))
    small = tmp_path / "small.safetensors"
    result = resize_verb(Resize(adapter=reference, rank=2, base=str(base), output=str(small)))
    assert result.lossy and result.ranks == {2: 2}
    whole = tmp_path / "whole.safetensors"
    mix_verb(Mix(adapters=(Reference(str(path), Weight(0.5)),), base=str(base), output=str(whole)))
    again = load(whole)
    assert again.kinds() == {"full": 2}
    for name in (LINEAR, CONV):
        expected = 0.5 * a.deltas[site(name)].dense(weights[name])
        got = again.deltas[site(name)].dense()
        assert np.linalg.norm(got - expected) < 1e-6 * np.linalg.norm(expected)
    for output in (small, whole):
        _, metadata = read_safetensors(output)
        recipe = json.loads(metadata["loramerge.recipe"])
        assert {entry["path"] for entry in recipe["inputs"].values()} == {base.name, path.name}
        (step,) = recipe["steps"]["result"].values()
        assert recipe["inputs"][step["base"]]["path"] == base.name
