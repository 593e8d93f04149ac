"""Adapters among the inputs of a merge: their changes are added to what the checkpoints make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter.load import load
from loramerge.errors import AdapterError, FamilyError
from loramerge.stream import blend
from tests.builders import small_models
from tests.builders.baking import bake_into, everything
from tests.builders.bases import (
    exact,
    magnitudes,
    modules,
    read_safetensors,
    sharded,
    single,
    write_safetensors,
)
from tests.builders.deltas import adapter, low_rank
from tests.stream import dense_merges as dense
from tests.stream.merges import as_row, merged, refused, same_as, small_bytes, wide
from tests.stream.test_kinds_at_a_base import KINDS, PLACES, read_back
from tests.stream.test_transformers import EXPERTS, expert_adapter, model_folder
from tests.tail import tail

Q, UP = "model.layers.0.attn.q_proj", "model.layers.1.mlp.up_proj"


def peft(
    path: Path, *, more: dict[str, Any] | None = None, names: tuple[str, ...] = (Q, UP)
) -> Any:
    """An adapter in PEFT's keys, of rank 2 for modules of the small models, and its change."""
    random = np.random.default_rng(5)
    tensors, change = dict(more or {}), {}
    for name in names:
        rows, columns = small_models.SHAPES[f"{name}.weight"]
        up, down = random.standard_normal((rows, 2)), random.standard_normal((2, columns))
        up, down = up.astype("float32"), down.astype("float32")
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        change[f"{name}.weight"] = up.astype("float64") @ down
    path.mkdir()
    (path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    write_safetensors(path / "adapter_model.safetensors", tensors)
    return load(path), change


@pytest.mark.parametrize("first", ["single", tail("sharded")])
def test_their_changes_are_added_and_rounded_once(tmp_path: Path, first: str) -> None:
    a = single(tmp_path / "a.safetensors", "sd15", "F16", seed=1)
    b = sharded(tmp_path / "b", "sd15", "F16")
    x, y = (a, b) if first == "single" else (b, a)
    output = tmp_path / ("out.safetensors" if first == "single" else "out")
    inputs = [(everything("sd15"), 0.8), (adapter_of("sd15"), -0.3)]
    merged(output, (x.path, 0.7), (y.path, 0.3), adapters=inputs)
    u, v = ({k: one.astype("float64") for k, one in m.weights.items()} for m in (x, y))
    mean = {k: 0.7 * u[k] + 0.3 * v[k] for k in u}
    sizes = {k: 0.7 * abs(u[k]) + 0.3 * abs(v[k]) for k in u}
    same_as(x, output, exact(mean, inputs), "F16", magnitudes(sizes, inputs))


def adapter_of(family: str) -> Any:
    names = [n for n, m in modules(family).items() if n.startswith("unet") and len(m.shape) > 1][:9]
    known = modules(family)
    return adapter({n: low_rank(known[n].shape, 2, 7) for n in names}, families=[family])


def test_one_model_with_an_adapter_is_a_bake(tmp_path: Path) -> None:
    a = single(tmp_path / "a.safetensors", "sd15", "BF16", seed=1)
    inputs = [(everything("sd15"), 0.8)]
    merged(tmp_path / "out.safetensors", (a.path, 1.0), adapters=inputs)
    bake_into(a, inputs, tmp_path / "baked.safetensors")
    out, _ = read_safetensors(tmp_path / "out.safetensors")
    baked, _ = read_safetensors(tmp_path / "baked.safetensors")
    apart = {name for name in baked if name not in out}
    assert all(name.startswith("model_ema") for name in apart)
    assert all(baked[name].tobytes() == value.tobytes() for name, value in out.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_that_depends_on_the_weight_lies_on_the_merged_one(
    three: list[Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blend, "BLOCK_ELEMENTS", 40)
    _, a, b = three
    delta, name = KINDS[kind]((12, 8)), f"{Q}.weight"
    merged(tmp_path / "out", (a, 0.6), (b, 0.4), adapters=[(adapter({Q: delta}), 0.7)], dtype="F64")
    mean, got = 0.6 * wide(a)[name] + 0.4 * wide(b)[name], small_models.read(tmp_path / "out")[name]
    np.testing.assert_allclose(got, mean + 0.7 * delta.dense(mean), rtol=0, atol=1e-6)
    assert not np.allclose(got, mean + 0.7 * delta.dense(wide(a)[name]), rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dora-in", "oft", "boft"])
def test_in_rows_of_fused_and_transposed_tensors(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blend, "BLOCK_ELEMENTS", 400)
    known = modules("sdxl")
    a, b = (single(tmp_path / f"{n}.safetensors", "sdxl", seed=n) for n in (1, 2))
    deltas = {name: KINDS[kind](known[name].shape) for name in PLACES.values()}
    inputs = [(adapter(deltas, families=["sdxl"]), 0.7)]
    merged(tmp_path / "out.safetensors", (a.path, 0.6), (b.path, 0.4), adapters=inputs, dtype="F64")
    found = read_back(tmp_path / "out.safetensors")
    for place, name in PLACES.items():
        one, two = (m.weights[f"{name}.weight"].astype("float64") for m in (a, b))
        mean = 0.6 * one + 0.4 * two
        want = mean + 0.7 * deltas[name].dense(mean).reshape(mean.shape)
        np.testing.assert_allclose(found[name], want, rtol=0, atol=1e-5, err_msg=place)


@pytest.mark.parametrize("method", ["linear", *(tail(m) for m in ("ties", "slerp", "della"))])
def test_with_a_base_and_methods(three: list[Path], tmp_path: Path, method: str) -> None:
    base, a, b = three
    lora, change = peft(tmp_path / "lora")
    merged(tmp_path / "out", (a, 0.9), (b, 0.4), base=base, method=method, scale="literal",
           dtype="F64", adapters=[(lora, 0.5)])  # fmt: skip
    c, x, y = map(wide, three)
    definition = getattr(dense, method)
    for name, value in small_models.read(tmp_path / "out").items():
        changes = [as_row(one[name] - c[name]) for one in (x, y)]
        want = as_row(c[name]) + definition(changes, [0.9, 0.4], name.removesuffix(".weight"))
        want = want + 0.5 * change.get(name, 0.0)
        np.testing.assert_allclose(as_row(value), want, rtol=0, atol=1e-9)


def test_the_same_bytes_on_any_number_of_threads(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    lora, _ = peft(tmp_path / "lora")
    for threads in (1, 2):
        merged(tmp_path / f"{threads}", (a, 0.6), (b, 0.4), adapters=[(lora, 1.0)], threads=threads)
    assert small_bytes(tmp_path / "1") == small_bytes(tmp_path / "2")


def test_what_does_not_fit_is_refused(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    two, output = ((a, 0.5), (b, 0.5)), tmp_path / "out"
    stranger = adapter_of("sd15")
    refused(FamilyError, "different families", output, *two, adapters=[(stranger, 1.0)])
    whole = {f"base_model.model.{Q}.base_layer.weight": small_models.read(a)[f"{Q}.weight"]}
    brings, _ = peft(tmp_path / "brings", more=whole)
    refused(AdapterError, "whole weights", output, *two, adapters=[(brings, 1.0)])
    tensors = {k: v for k, v in small_models.read(b).items() if k != f"{UP}.weight"}
    lacks = small_models.write(tmp_path / "lacks", tensors)
    lora, change = peft(tmp_path / "lora")
    refused(AdapterError, "lacks 1 modules", output, (lacks, 1.0), adapters=[(lora, 1.0)])
    merged(output, (lacks, 1.0), adapters=[(lora, 1.0)], skip_missing=["all"], dtype="F64")
    got, name = small_models.read(output), f"{Q}.weight"
    np.testing.assert_allclose(got[name], wide(lacks)[name] + change[name], atol=1e-12)


def test_experts_that_are_stacked_are_refused(tmp_path: Path) -> None:
    lora = load(expert_adapter(tmp_path / "lora"))
    stack = {f"{EXPERTS}.gate_up_proj": np.ones((3, 6, 4), "float32")}
    models = [(model_folder(tmp_path / name, stack), 0.5) for name in "ab"]
    refused(AdapterError, "stacks experts", tmp_path / "out", *models, adapters=[(lora, 1.0)])
