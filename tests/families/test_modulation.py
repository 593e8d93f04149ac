"""Differences of Wan's modulation tables, which distilled adapters call `diff_m`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter.load import load
from loramerge.errors import NotExpressible
from loramerge.families import FAMILIES
from tests.builders.bases import read_safetensors, write_safetensors
from tests.builders.samples import Array

WIDTH = 16
_SIZES = {5120: WIDTH, 6 * 5120: 6 * WIDTH, 13824: 32, 4096: 8, 1280: 8, 36: 4}


def _random(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype("float32")


def _adapter(folder: Path) -> Path:
    tensors = {}
    for i in (0, 39):
        stem = f"diffusion_model.blocks.{i}"
        tensors[f"{stem}.self_attn.q.lora_A.weight"] = _random(1, WIDTH)
        tensors[f"{stem}.self_attn.q.lora_B.weight"] = _random(WIDTH, 1)
        tensors[f"{stem}.diff_m"] = _random(1, 6, WIDTH) * (i + 1)
    tensors["diffusion_model.head.diff_m"] = _random(1, 2, WIDTH)
    write_safetensors(folder / "a.safetensors", tensors)
    return folder / "a.safetensors"


def wan_base() -> dict[str, Array]:
    """A narrow Wan in its original names, of zeros."""
    (component,) = (c for c in FAMILIES["wan"].components if c.name == "transformer")
    spelling = FAMILIES["wan"].spellings["transformer"][0]
    return {
        slot.tensor: np.zeros(
            [
                _SIZES.get(n, n)
                for n in (module.shape if parameter == "weight" else module.shape[:1])
            ],
            "float32",
        )
        for module, parameter, slot in spelling.slots(component)
    }


def test_modulation_is_mixed_and_written_back(tmp_path: Path) -> None:
    adapter = load(_adapter(tmp_path))
    assert adapter.info.detection.name == "wan"
    assert not adapter.info.account.unknown
    half = lm.mix([(adapter, 0.5)])
    lm.save(half, tmp_path / "half.safetensors")
    before, _ = read_safetensors(tmp_path / "a.safetensors")
    after, _ = read_safetensors(tmp_path / "half.safetensors")
    for key in (key for key in before if key.endswith("diff_m")):
        np.testing.assert_array_equal(after[key], 0.5 * before[key])
    lm.save(adapter, tmp_path / "kohya.safetensors", dialect="kohya")
    again = load(tmp_path / "kohya.safetensors")
    assert sorted(again) == sorted(adapter)
    with pytest.raises(NotExpressible, match="scale_shift_table"):
        lm.save(adapter, tmp_path / "diffusers.safetensors", dialect="diffusers")


def test_modulation_is_added_to_that_of_the_base(tmp_path: Path) -> None:
    adapter = _adapter(tmp_path)
    write_safetensors(tmp_path / "base.safetensors", wan_base())
    lm.bake(tmp_path / "base.safetensors", [(str(adapter), 0.5)], tmp_path / "baked.safetensors")
    baked, _ = read_safetensors(tmp_path / "baked.safetensors")
    tensors, _ = read_safetensors(adapter)
    for place, key in {
        "blocks.39.modulation": "diffusion_model.blocks.39.diff_m",
        "head.modulation": "diffusion_model.head.diff_m",
    }.items():
        np.testing.assert_array_equal(baked[place], 0.5 * tensors[key])


def test_a_modulation_table_is_never_factored(tmp_path: Path) -> None:
    """It is one row: factors would be larger, and the original `diff_m` is what programs read."""
    adapter = load(_adapter(tmp_path))
    before, _ = read_safetensors(tmp_path / "a.safetensors")
    rank = {"rank": 1}
    made = {
        "resized": lm.resize(adapter, **rank),
        "mixed": lm.mix([(adapter, 0.75), (adapter, 0.25)], **rank),
        "converted": lm.convert(adapter, to_lora=True, **rank),
    }
    for name, found in made.items():
        lm.save(found, tmp_path / f"{name}.safetensors", dialect="comfyui")
        after, _ = read_safetensors(tmp_path / f"{name}.safetensors")
        tables = [key for key in before if key.endswith("diff_m")]
        assert len(tables) == 3 and not any("modulation" in key for key in after), name
        for key in tables:
            np.testing.assert_allclose(after[key], before[key], rtol=1e-6, err_msg=name)
