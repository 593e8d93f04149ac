"""Bases in ComfyUI's quantised formats: mxfp8, nvfp4, int8 and rotated int8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter import Adapter
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.checkpoint.rotated import rotation
from loramerge.errors import FormatError, ShapeError
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from loramerge.stream.survival import Survival
from tests.builders.bases import Array, read_safetensors, write_safetensors
from tests.builders.deltas import adapter, low_rank

ROWS, COLUMNS = 40, 160  # no multiples of a tile
MODULE = "model.layers.0.self_attn.v_proj"
OTHER = "model.layers.1.self_attn.v_proj"
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def tiles(scales: Array, kind: Any) -> Array:
    """Scales where the tensor cores look for them, by the formula of their manual."""
    rows, groups = scales.shape
    found = np.zeros((-(-rows // 128) * 128, -(-groups // 4) * 4), kind)
    flat, wide = found.reshape(-1), found.shape[1] // 4
    for r in range(rows):
        for g in range(groups):
            tile = (r // 128) * wide + g // 4
            flat[tile * 512 + (r % 32) * 16 + (r % 128) // 32 * 4 + g % 4] = scales[r, g]
    return found


def scales_of(stored: Array, groups: int) -> Array:
    flat, wide = stored.reshape(-1), stored.shape[1] // 4
    return np.array([[flat[(r // 128 * wide + g // 4) * 512 + r % 32 * 16 + r % 128 // 32 * 4 + g % 4]
                      for g in range(groups)] for r in range(ROWS)])  # fmt: skip


def mark(**content: Any) -> Array:
    return np.frombuffer(json.dumps(content).encode(), np.uint8).copy()


def mxfp8(random: np.random.Generator, name: str) -> dict[str, Array]:
    codes = random.standard_normal((ROWS, COLUMNS)).astype("float32") * 100
    powers = random.integers(105, 112, (ROWS, COLUMNS // 32)).astype(np.uint8)
    return {
        f"{name}.weight": codes.astype(ml_dtypes.float8_e4m3fn),
        f"{name}.weight_scale": tiles(powers, np.uint8).view(ml_dtypes.float8_e8m0fnu),
        f"{name}.comfy_quant": mark(format="mxfp8"),
    }


def nvfp4(random: np.random.Generator, name: str) -> dict[str, Array]:
    scales = random.uniform(50, 400, (ROWS, COLUMNS // 16)).astype(ml_dtypes.float8_e4m3fn)
    return {
        f"{name}.weight": random.integers(0, 256, (ROWS, COLUMNS // 2), dtype=np.uint8),
        f"{name}.weight_scale": tiles(scales, ml_dtypes.float8_e4m3fn),
        f"{name}.weight_scale_2": np.array(2e-4, "float32"),
        f"{name}.comfy_quant": mark(format="nvfp4"),
    }


def int8(random: np.random.Generator, name: str, **settings: Any) -> dict[str, Array]:
    scale = random.uniform(1e-3, 2e-3, (ROWS, 1)).astype("float32")
    return {
        f"{name}.weight": random.integers(-120, 121, (ROWS, COLUMNS), dtype=np.int8),
        f"{name}.weight_scale": scale,
        f"{name}.comfy_quant": mark(format="int8_tensorwise", **settings),
    }


def rotated(random: np.random.Generator, name: str) -> dict[str, Array]:
    return int8(random, name, convrot=True, convrot_groupsize=16)


def blocks(random: np.random.Generator, name: str) -> dict[str, Array]:
    codes = random.standard_normal((ROWS, COLUMNS)).astype("float32") * 100
    return {
        f"{name}.weight": codes.astype(ml_dtypes.float8_e4m3fn),
        f"{name}.weight_scale_inv": random.uniform(1e-4, 2e-4, (1, 2)).astype("float32"),
    }


def rotated4(random: np.random.Generator, name: str) -> dict[str, Array]:
    return {
        f"{name}.weight": random.integers(-128, 128, (ROWS, COLUMNS // 2), dtype=np.int8),
        f"{name}.weight_scale": random.uniform(0.01, 0.02, ROWS).astype("float32"),
        f"{name}.comfy_quant": mark(format="convrot_w4a4", convrot_groupsize=16),
    }


def awq(random: np.random.Generator, name: str) -> dict[str, Array]:
    scales = random.uniform(0.005, 0.01, (COLUMNS // 32, ROWS)).astype("float32")
    return {
        f"{name}.weight": random.integers(-128, 128, (ROWS, COLUMNS // 2), dtype=np.int8),
        f"{name}.weight_scale": scales,
        f"{name}.weight_zero": random.uniform(-0.01, 0.01, scales.shape).astype("float32"),
        f"{name}.comfy_quant": mark(format="awq_w4a16", group_size=32),
    }


TABLE = np.linspace(-1, 1, 16).astype("float32") ** 3 * 0.3 + np.linspace(-1, 1, 16) * 0.7


def w4a8(random: np.random.Generator, name: str) -> dict[str, Array]:
    relative = random.uniform(60, 120, (ROWS, COLUMNS // 16)).astype(ml_dtypes.float8_e4m3fn)
    return {
        f"{name}.weight": random.integers(-128, 128, (ROWS, COLUMNS // 2), dtype=np.int8),
        f"{name}.weight_s_rel": relative,
        f"{name}.weight_s_channel": random.uniform(0.5e-3, 1e-3, ROWS).astype("float32"),
        f"{name}.weight_codebook": TABLE.astype("float32"),
        f"{name}.comfy_quant": mark(format="asym_w4a8_int8", group_size=16, convrot_groupsize=16),
    }


def w6a8(random: np.random.Generator, name: str) -> dict[str, Array]:
    made = w4a8(random, name)
    del made[f"{name}.weight_codebook"]
    made[f"{name}.weight"] = random.integers(-128, 128, (ROWS, COLUMNS * 3 // 4), dtype=np.int8)
    relative = random.uniform(2, 4, (ROWS, COLUMNS // 16)).astype(ml_dtypes.float8_e4m3fn)
    return made | {f"{name}.weight_s_rel": relative}


FORMATS = {
    "mxfp8": mxfp8, "nvfp4": nvfp4, "int8": int8, "rotated": rotated, "blocks": blocks,
    "rotated4": rotated4, "awq": awq, "w4a8": w4a8, "w6a8": w6a8,
}  # fmt: skip
# largest error of a changed weight in steps of the old numbers, at most
STEPS = {
    "mxfp8": 1.0, "nvfp4": 1.0, "int8": 0.51, "rotated": 2.1, "blocks": 1.0, "rotated4": 2.1,
    "awq": 1.0, "w4a8": 4.5, "w6a8": 4.5,
}  # fmt: skip


def pairs_of(raw: Array) -> Array:
    """Half bytes, that of the even column in the lower half."""
    both = raw.view(np.uint8)
    return np.stack((both & 15, both >> 4), axis=-1).reshape(len(raw), -1).astype("float64")


def read(tensors: dict[str, Array], name: str, kind: str) -> tuple[Array, Array]:
    """The weight in float64, and the distance of its numbers."""
    raw = tensors[f"{name}.weight"]
    if kind == "blocks":
        factor = np.repeat(tensors[f"{name}.weight_scale_inv"], 128, axis=1)[:, :COLUMNS]
        codes = raw.astype("float64")
        return codes * factor, np.maximum(np.abs(codes) / 8, 2.0**-9) * factor
    if kind in ("w4a8", "w6a8"):
        relative = np.repeat(tensors[f"{name}.weight_s_rel"].astype("float64"), 16, axis=1)
        codes = pairs_of(raw[:, : COLUMNS // 2])
        if kind == "w6a8":
            high = raw[:, COLUMNS // 2 :].view(np.uint8)
            for column in range(COLUMNS):
                codes[:, column] += 16 * (high[:, column // 4] >> (2 * (column % 4)) & 3)
        levels = TABLE[codes.astype(int)] if kind == "w4a8" else codes - 32
        row = tensors[f"{name}.weight_s_channel"].astype("float64").reshape(-1, 1)
        weight = np.clip(np.rint(levels * relative), -127, 127) * row
        turn = rotation(16).astype("float64")
        step = np.maximum(relative * (2 / 15 if kind == "w4a8" else 1), 1) * row
        return (weight.reshape(ROWS, -1, 16) @ turn).reshape(ROWS, COLUMNS), step
    scale = tensors[f"{name}.weight_scale"]
    if kind == "awq":
        factor, zero = (
            np.repeat(tensors[f"{name}.{word}"].T.astype("float64"), 32, axis=1)
            for word in ("weight_scale", "weight_zero")
        )
        return (pairs_of(raw) - 8) * factor + zero, factor
    if kind == "rotated4":
        codes, scale = pairs_of(raw), scale.reshape(-1, 1)
        raw = np.where(codes > 7, codes - 16, codes)
    if kind == "mxfp8":
        factor = 2.0 ** (scales_of(scale.view(np.uint8), COLUMNS // 32).astype("float64") - 127)
        factor, codes = np.repeat(factor, 32, axis=1), raw.astype("float64")
        return codes * factor, np.maximum(np.abs(codes) / 8, 2.0**-9) * factor
    if kind == "nvfp4":
        pairs = np.stack((raw >> 4, raw & 15), axis=-1).reshape(ROWS, COLUMNS)
        codes = FP4[pairs & 7] * np.where(pairs & 8, -1, 1)
        factor = scales_of(scale, COLUMNS // 16).astype("float64")
        factor = np.repeat(factor, 16, axis=1) * float(tensors[f"{name}.weight_scale_2"])
        return codes * factor, 2 * factor
    weight = raw.astype("float64") * scale.astype("float64")
    if kind.startswith("rotated"):
        turn = rotation(16).astype("float64")
        weight = (weight.reshape(ROWS, -1, 16) @ turn).reshape(ROWS, COLUMNS)
    return weight, np.broadcast_to(scale.astype("float64"), weight.shape)


def base(folder: Path, kind: str) -> Path:
    random = np.random.default_rng(3)
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaModel"]}')
    tensors = {**FORMATS[kind](random, MODULE), **FORMATS[kind](random, OTHER)}
    tensors["model.norm.weight"] = np.ones(8, "float32")
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def sample(size: float, rows: int = 24) -> Adapter:
    delta = low_rank((ROWS, COLUMNS), 2)
    delta.up.numpy()[rows:] = 0
    return adapter({MODULE: delta.scaled(size)})


def run(path: Path, a: Adapter, out: Path, **options: Any) -> list[Survival]:
    return bake(plan_bake(open_checkpoint(path), [(a, Weight())]), out, **options)


def tensors_of(folder: Path) -> dict[str, Array]:
    return read_safetensors(folder / "model.safetensors")[0]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_bake_is_the_sum_in_the_format(tmp_path: Path, kind: str) -> None:
    path, out, a = base(tmp_path / "base", kind), tmp_path / "out", sample(0.02)
    (found,) = run(path, a, out, threads=1)
    before, after = tensors_of(path), tensors_of(out)
    asked = next(iter(a.deltas.values())).dense()
    (old, step), (new, _) = (read(t, MODULE, kind) for t in (before, after))
    assert (np.abs(new - old - asked) <= STEPS[kind] * step + np.abs(asked)).all()
    assert found.asked == pytest.approx(float((asked**2).sum()), rel=1e-4)
    assert found.error == pytest.approx(float(((new - old - asked) ** 2).sum()), rel=1e-2)
    assert found.base == pytest.approx(float((old**2).sum()), rel=1e-4)
    codes = after[f"{MODULE}.weight"], before[f"{MODULE}.weight"]
    assert codes[0][24:].tobytes() == codes[1][24:].tobytes()
    assert codes[0].tobytes() != codes[1].tobytes()
    for name in before:
        if not name.startswith(MODULE) or name.endswith(("_2", "comfy_quant")):
            assert before[name].tobytes() == after[name].tobytes(), name


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("kind", FORMATS)
def test_random_rounding_keeps_the_change_on_average(tmp_path: Path, kind: str) -> None:
    path, a = base(tmp_path / "base", kind), sample(0.002)
    kept = []
    for seed in range(6):
        (found,) = run(path, a, tmp_path / str(seed), seed=seed)
        kept.append(found.along / found.asked)
    assert abs(np.mean(kept) - 1) < 0.5


@pytest.mark.long_tail(keep=2)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_merge_and_a_difference_read_it(tmp_path: Path, kind: str) -> None:
    path, out, a = base(tmp_path / "base", kind), tmp_path / "out", sample(0.5)
    run(path, a, out)
    found = lm.extract(out, path, rank=2)
    asked = next(iter(a.deltas.values())).dense()
    (delta,) = found.deltas.values()
    assert np.linalg.norm(delta.dense() - asked) < 0.3 * np.linalg.norm(asked)
    lm.merge([(path, 0.5), (out, 0.5)], tmp_path / "merged")
    first, other, merged = (tensors_of(p) for p in (path, out, tmp_path / "merged"))
    (one, _), (two, _), (half, step) = (read(t, MODULE, kind) for t in (first, other, merged))
    error = np.linalg.norm(half - (one + two) / 2)
    assert error < 0.5 * np.linalg.norm(step) and error < 0.25 * np.linalg.norm(two - one)
    assert first[f"{OTHER}.weight"].tobytes() == merged[f"{OTHER}.weight"].tobytes()


def test_int8_rows_grow_their_scale_where_they_must(tmp_path: Path) -> None:
    path, out = base(tmp_path / "base", "rotated"), tmp_path / "out"
    a = sample(3.0)
    (found,) = run(path, a, out)
    before, after = tensors_of(path), tensors_of(out)
    old, new = before[f"{MODULE}.weight_scale"], after[f"{MODULE}.weight_scale"]
    assert (new >= old).all() and (new > old).any() and (new[24:] == old[24:]).all()
    assert found.error < 1e-3 * found.asked


@pytest.mark.parametrize(
    ("kind", "edit", "says"),
    [
        ("mxfp8", {"weight_scale": np.zeros((4, 4), np.uint8)}, "one for each 32 columns"),
        ("nvfp4", {"weight_scale": np.zeros((4, 4), np.uint8)}, "one for each 16 columns"),
        ("nvfp4", {"weight_scale_2": np.array(0, "float32")}, "not a positive number"),
        ("int8", {"comfy_quant": np.frombuffer(b"{", np.uint8).copy()}, "mark of a quantised"),
        ("int8", {"comfy_quant": mark(format="svdquant_w4a4")}, "svdquant_w4a4"),
        ("w4a8", {"weight_s_channel": np.ones(3, "float32")}, "W4A8"),
        ("awq", {"weight_zero": np.ones((2, 2), "float32")}, "zero points"),
        ("rotated4", {"weight_scale": np.ones(3, "float32")}, "scale for each row"),
        ("int8", {"comfy_quant": None}, "quantised"),
        ("rotated", {"comfy_quant": mark(format="int8_tensorwise", convrot=True)}, "rotation"),
    ],
)
def test_what_is_not_understood_is_refused(
    tmp_path: Path, kind: str, edit: dict[str, Array | None], says: str
) -> None:
    path = base(tmp_path / "base", kind)
    tensors = tensors_of(path)
    for name, value in edit.items():
        tensors.pop(f"{MODULE}.{name}")
        if value is not None:
            tensors[f"{MODULE}.{name}"] = value
    write_safetensors(path / "model.safetensors", tensors)
    with pytest.raises(FormatError, match=says):
        run(path, sample(0.1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_filled_up_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = base(tmp_path / "base", "nvfp4")
    a = adapter({MODULE: low_rank((ROWS - 1, COLUMNS - 3), 2)})
    with pytest.raises(ShapeError, match="shapes") as caught:
        run(path, a, tmp_path / "out")
    assert "fills them up" not in str(caught.value.hint)  # 40 rows are no multiple of 16
    path = base(tmp_path / "other", "mxfp8")
    tensors = tensors_of(path)
    name = f"{MODULE}.weight"
    tensors[name] = np.concatenate([tensors[name], tensors[name]])[:64]
    write_safetensors(path / "model.safetensors", tensors)
    with pytest.raises(ShapeError) as caught:
        run(path, adapter({MODULE: low_rank((50, COLUMNS - 3), 2)}), tmp_path / "out")
    assert "fills them up" in str(caught.value.hint)
