"""Factors in numbered parts mean what the trainer computed with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter.load import load
from tests.builders.samples import Array, safetensors_bytes

STEM = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
RANK = 3


def _normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def _write(folder: Path, tensors: dict[str, Array]) -> Path:
    path = folder / "a.safetensors"
    path.write_bytes(safetensors_bytes(tensors))
    return path


def _ranks(kernel: tuple[int, ...] = ()) -> dict[str, Array]:
    """DyLoRA's parameters, out of order as names sort them."""
    ones = (1,) * len(kernel)
    down, up = _normal(RANK, 8, *kernel), _normal(6, RANK, *ones)
    return {
        **{f"{STEM}.lora_A.{n}": down[n : n + 1] for n in reversed(range(RANK))},
        **{f"{STEM}.lora_B.{n}": up[:, n : n + 1] for n in range(RANK)},
        f"{STEM}.alpha": np.array(1.5, np.float32),
    }


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_ranks_of_dylora_are_stacked(kernel: tuple[int, ...], tmp_path: Path) -> None:
    tensors = _ranks(kernel)
    adapter = load(_write(tmp_path, tensors))
    expected = sum(
        np.tensordot(
            tensors[f"{STEM}.lora_B.{n}"].reshape(6, 1), tensors[f"{STEM}.lora_A.{n}"], axes=1
        )
        for n in range(RANK)
    )
    (delta,) = adapter.deltas.values()
    assert delta.rank == RANK and not adapter.info.account.unknown
    assert np.allclose(delta.dense().reshape(expected.shape), 0.5 * expected, atol=1e-6)


def test_numbered_parts_are_written_as_sd_scripts_saves_a_network(tmp_path: Path) -> None:
    adapter = load(_write(tmp_path, _ranks()))
    lm.save(adapter, tmp_path / "b.safetensors")
    found = load(tmp_path / "b.safetensors")
    assert sorted(key.removeprefix(STEM) for key in found.info.order) == [
        ".alpha", ".lora_down.weight", ".lora_up.weight",
    ]  # fmt: skip
    (one,), (other,) = adapter.deltas.values(), found.deltas.values()
    assert np.array_equal(one.dense(), other.dense())


@pytest.mark.parametrize("alpha", [True, False])
def test_parts_of_fused_layers_are_factors_of_their_own_rows(alpha: bool, tmp_path: Path) -> None:
    """The trainer multiplies each part by alpha / r."""
    heights = (6, 2, 2)
    tensors = {
        **{f"{STEM}.lora_down.{n}.weight": _normal(RANK, 8 + 0 * n) + n for n in range(3)},
        **{f"{STEM}.lora_up.{n}.weight": _normal(h, RANK) + n for n, h in enumerate(heights)},
    }
    if alpha:
        tensors[f"{STEM}.alpha"] = np.array(1.5, np.float32)
    (delta,) = load(_write(tmp_path, tensors)).deltas.values()
    expected = np.concatenate(
        [
            tensors[f"{STEM}.lora_up.{n}.weight"] @ tensors[f"{STEM}.lora_down.{n}.weight"]
            for n in range(3)
        ]
    )
    assert delta.rank == 3 * RANK
    assert np.allclose(delta.dense(), (0.5 if alpha else 1.0) * expected, atol=1e-5)


@pytest.mark.parametrize("lost", ["lora_A.1", "lora_B.2", "lora_A.0"])
def test_parts_that_do_not_fit_together_stay_unknown(lost: str, tmp_path: Path) -> None:
    tensors = _ranks()
    del tensors[f"{STEM}.{lost}"]
    adapter = load(_write(tmp_path, tensors))
    assert not adapter.deltas
    assert set(adapter.info.account.unknown) == tensors.keys()


def test_existing_factors_are_not_replaced_by_numbered_parts(tmp_path: Path) -> None:
    whole = {f"{STEM}.lora_down.weight": _normal(1, 8), f"{STEM}.lora_up.weight": _normal(6, 1)}
    adapter = load(_write(tmp_path, _ranks() | whole))
    assert set(adapter.info.account.unknown) == {
        k for k in _ranks() if "lora_A" in k or "lora_B" in k
    }
