"""Bases in the 4 and 8 bits of bitsandbytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter import Adapter
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.errors import FormatError
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from tests.builders.bases import Array, read_safetensors, write_safetensors
from tests.builders.deltas import adapter, low_rank

ROWS, COLUMNS, BLOCK = 24, 96, 64  # blocks of numbers run over the ends of rows
MODULE = "model.layers.0.self_attn.v_proj"
TABLE = np.array(
    [-1, -0.696, -0.525, -0.395, -0.284, -0.185, -0.091, 0, 0.08, 0.161, 0.246, 0.338, 0.441, 0.563,
     0.723, 1], "float32",
)  # fmt: skip


def base(folder: Path, *, nested: bool, **state: Any) -> Path:
    random = np.random.default_rng(1)
    count, name = ROWS * COLUMNS // BLOCK, f"{MODULE}.weight"
    content = {"quant_type": "nf4", "blocksize": BLOCK, "shape": [ROWS, COLUMNS]}
    tensors: dict[str, Array] = {
        name: random.integers(0, 256, (ROWS * COLUMNS // 2, 1), dtype=np.uint8),
        f"{name}.quant_map": TABLE,
        f"{name}.absmax": random.uniform(0.1, 0.2, count).astype("float32"),
        "model.norm.weight": np.ones(8, "float32"),
    }
    if nested:
        tensors[f"{name}.absmax"] = random.integers(0, 256, count, dtype=np.uint8)
        tensors[f"{name}.nested_absmax"] = np.array([0.05, 0.04, 0.06], "float32")
        tensors[f"{name}.nested_quant_map"] = np.linspace(-1, 1, 256, dtype="float32")
        content |= {"nested_blocksize": 16, "nested_offset": 0.15}
    text = json.dumps(content | state).encode()
    key = f"{name}.quant_state.bitsandbytes__nf4"
    tensors[key] = np.frombuffer(text, np.uint8).copy()
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaModel"]}')
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def read(folder: Path) -> tuple[Array, dict[str, Array]]:
    """The weight in float64, and all tensors."""
    tensors = read_safetensors(folder / "model.safetensors")[0]
    name = f"{MODULE}.weight"
    raw = tensors[name].reshape(-1)
    codes = np.stack((raw >> 4, raw & 15), axis=-1).reshape(-1, BLOCK)
    scale = tensors[f"{name}.absmax"]
    if scale.dtype == np.uint8:
        outer = np.repeat(tensors[f"{name}.nested_absmax"].astype("float64"), 16)[: len(scale)]
        scale = tensors[f"{name}.nested_quant_map"].astype("float64")[scale] * outer + 0.15
    weight = TABLE.astype("float64")[codes] * scale.astype("float64")[:, None]
    return weight.reshape(ROWS, COLUMNS), tensors


def sample(size: float) -> Adapter:
    delta = low_rank((ROWS, COLUMNS), 2)
    delta.up.numpy()[9:] = 0
    return adapter({MODULE: delta.scaled(size)})


def run(path: Path, a: Adapter, out: Path, **options: Any) -> Any:
    return bake(plan_bake(open_checkpoint(path), [(a, Weight())]), out, **options)


@pytest.mark.parametrize("nested", [False, True], ids=["plain scales", "quantised scales"])
def test_a_bake_is_the_nearest_in_the_table(tmp_path: Path, nested: bool) -> None:
    path, out, a = base(tmp_path / "base", nested=nested), tmp_path / "out", sample(0.05)
    (found,) = run(path, a, out, threads=1)
    (old, before), (new, after) = read(path), read(out)
    (delta,) = a.deltas.values()
    asked = delta.dense()
    assert found.asked == pytest.approx(float((asked**2).sum()), rel=1e-4)
    assert found.error == pytest.approx(float(((new - old - asked) ** 2).sum()), rel=1e-2)
    widest = 0.31 / 2 * np.abs(old).max()  # half of the widest gap of the table
    assert np.abs(new - old - asked).max() <= widest + 0.5 * np.abs(asked).max()
    name = f"{MODULE}.weight"
    first = 9 * COLUMNS // BLOCK + 1  # the first block without a change
    assert (
        before[name][first * BLOCK // 2 :].tobytes() == after[name][first * BLOCK // 2 :].tobytes()
    )
    scales = before[f"{name}.absmax"], after[f"{name}.absmax"]
    assert (scales[0][first:] == scales[1][first:]).all()
    others = [key for key in before if key not in (name, f"{name}.absmax")]
    assert all(before[key].tobytes() == after[key].tobytes() for key in others)


def test_random_rounding_keeps_the_change_on_average(tmp_path: Path) -> None:
    path, a = base(tmp_path / "base", nested=True), sample(0.005)
    kept = [(s.along / s.asked) for i in range(8) for s in run(path, a, tmp_path / str(i), seed=i)]
    assert abs(np.mean(kept) - 1) < 0.6


def test_it_is_merged_extracted_and_kept_wider(tmp_path: Path) -> None:
    path, out, a = base(tmp_path / "base", nested=True), tmp_path / "out", sample(0.3)
    run(path, a, out)
    (old, _), (new, _) = read(path), read(out)
    lm.merge([(path, 0.5), (out, 0.5)], tmp_path / "merged")
    half, _ = read(tmp_path / "merged")
    assert np.linalg.norm(half - (old + new) / 2) < 0.5 * np.linalg.norm(new - old)
    (delta,) = lm.extract(out, path, full=True).deltas.values()
    assert np.allclose(delta.dense(), new - old, atol=1e-5)
    lm.bake(path, [(a, 1.0)], tmp_path / "wide", keep_touched="float32")
    wide = read_safetensors(tmp_path / "wide" / "model.safetensors")[0]
    assert set(wide) == {"model.norm.weight", f"{MODULE}.weight"}
    (asked,) = a.deltas.values()
    assert np.allclose(wide[f"{MODULE}.weight"], old + asked.dense(), atol=1e-6)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"shape": [ROWS, 5]}, "shape of this 4-bit weight"),
        ({"shape": "x"}, "shape of this 4-bit weight"),
        ({"blocksize": 60}, "not those of its shape"),
        ({"nested_blocksize": 2}, "quantised scales"),
        ({"nested_offset": None}, "quantised scales"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, state: Any, says: str) -> None:
    path = base(tmp_path / "base", nested=True, **state)
    with pytest.raises(FormatError, match=says):
        run(path, sample(0.1), tmp_path / "out")


def int8(folder: Path, **edit: Array) -> Path:
    """A base in the int8 of bitsandbytes."""
    random, stem = np.random.default_rng(4), MODULE
    tensors = {
        f"{stem}.weight": random.integers(-100, 101, (ROWS, COLUMNS), dtype=np.int8),
        f"{stem}.SCB": random.uniform(0.1, 0.2, ROWS).astype("float32"),
        f"{stem}.weight_format": np.array(0, "uint8"),
    }
    tensors |= {f"{stem}.{key}": value for key, value in edit.items()}
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaModel"]}')
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.mark.parametrize("size", [0.02, 3.0], ids=["within the scale", "beyond it"])
def test_int8_rows_keep_their_scale_or_get_a_larger_one(tmp_path: Path, size: float) -> None:
    path, out, a = int8(tmp_path / "base"), tmp_path / "out", sample(size)
    (found,) = run(path, a, out)
    before, after = (read_safetensors(p / "model.safetensors")[0] for p in (path, out))
    scales = [tensors[f"{MODULE}.SCB"] for tensors in (before, after)]
    assert (scales[1] >= scales[0]).all() and found.rescaled == (size > 1)
    assert (scales[1][9:] == scales[0][9:]).all()
    old, new = (
        t[f"{MODULE}.weight"] * t[f"{MODULE}.SCB"].astype("float64")[:, None] / 127
        for t in (before, after)
    )
    (delta,) = a.deltas.values()
    step = scales[1].astype("float64")[:, None] / 127
    assert (np.abs(new - old - delta.dense()) <= 0.5001 * step).all()
    assert before[f"{MODULE}.weight"][9:].tobytes() == after[f"{MODULE}.weight"][9:].tobytes()


@pytest.mark.parametrize(
    "edit", [{"weight_format": np.array(1, "uint8")}, {"SCB": np.ones(3, "float32")}]
)
def test_other_orders_of_int8_are_refused(tmp_path: Path, edit: dict[str, Array]) -> None:
    with pytest.raises(FormatError, match="row by row"):
        run(int8(tmp_path / "base", **edit), sample(0.1), tmp_path / "out")
