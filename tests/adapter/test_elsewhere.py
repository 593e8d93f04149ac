"""The changes that other programs compute: their formulas, and the distance from the definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter.elsewhere import FORMULAS, computed_elsewhere
from loramerge.adapter.load import load
from loramerge.dialects.programs import READERS
from loramerge.dialects.programs.others import (
    ALL_BY_INPUTS,
    BASE_NORM,
    NO_CORE,
    NO_FACTORS,
    NO_MAGNITUDES,
    OTHER_CONSTRAINT,
    OTHERS,
)
from tests.builders.bases import write_safetensors
from tests.builders.samples import Array

STEM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
OUT, IN = 6, 8


def _random(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype("float32")


DORA = {
    "lora_up.weight": _random(OUT, 2),
    "lora_down.weight": _random(2, IN),
    "dora_scale": np.abs(_random(OUT, 1)) + 1,
}
STEP = DORA["lora_up.weight"] @ DORA["lora_down.weight"]


def _delta(folder: Path, roles: dict[str, Array]) -> Any:
    path = folder / f"{len(list(folder.iterdir()))}.safetensors"
    write_safetensors(path, {f"{STEM}.{role}": value for role, value in roles.items()})
    (delta,) = load(path).values()
    return delta


def test_every_difference_that_programs_make_has_a_formula() -> None:
    said = {
        text
        for program in READERS.known()
        for table in (program.otherwise, *(reads.otherwise for reads in program.reads))
        for text in table.values()
    }
    assert said <= set(OTHERS) == set(FORMULAS)


def test_dora_of_outputs(tmp_path: Path) -> None:
    base = _random(OUT, IN).astype("float64")
    moved, scale = base + STEP, DORA["dora_scale"]
    expected = {
        BASE_NORM: scale * moved / np.linalg.norm(base, axis=1, keepdims=True) - base,
        ALL_BY_INPUTS: scale * moved / np.linalg.norm(moved, axis=0, keepdims=True) - base,
        NO_MAGNITUDES: STEP,
    }
    delta = _delta(tmp_path, DORA)
    for what, change in expected.items():
        np.testing.assert_allclose(computed_elsewhere(what, delta, base), change, atol=1e-5)
    own = scale * moved / np.linalg.norm(moved, axis=1, keepdims=True) - base
    np.testing.assert_allclose(delta.dense(base), own, atol=1e-5)


def test_rotations_of_outputs(tmp_path: Path) -> None:
    blocks, base = _random(3, 2, 2), _random(OUT, IN).astype("float64")
    whole = _delta(
        tmp_path,
        {"oft_blocks": blocks, "rescale": _random(OUT, 1) + 2, "alpha": np.array(0, "float32")},
    )
    plain = _delta(tmp_path, {"oft_blocks": blocks})
    found = computed_elsewhere(NO_FACTORS, whole, base)
    np.testing.assert_allclose(found, plain.dense(base), atol=1e-6)
    bound = _delta(tmp_path, {"oft_blocks": blocks, "alpha": np.array(0.6, "float32")})
    other = _delta(tmp_path, {"oft_blocks": blocks, "alpha": np.array(0.1, "float32")})
    found = computed_elsewhere(OTHER_CONSTRAINT, bound, base)
    np.testing.assert_allclose(found, other.dense(base), atol=1e-6)
    assert not np.allclose(found, bound.dense(base), atol=1e-3)
    assert not computed_elsewhere(NO_CORE, bound, base).any()


@pytest.mark.parametrize("given", [False, True])
def test_inspect_says_how_far_programs_are(run: Any, given: bool) -> None:
    from loramerge.checkpoint import open_checkpoint
    from loramerge.stream.reading import weights_of

    base = open_checkpoint("base.safetensors")
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    (place,) = base.slots[name, "weight"]
    weight = weights_of(place, "float64")
    up, down = 0.5 * _random(len(weight), 2), _random(2, weight.shape[1])
    norms = np.linalg.norm(weight + up @ down, axis=1, keepdims=True)
    roles = {"lora_up.weight": up, "lora_down.weight": down, "dora_scale": 1.1 * norms}
    write_safetensors(
        Path("d.safetensors"),
        {f"{STEM}.{role}": value.astype("float32") for role, value in roles.items()},
        {"ss_base_model_version": "sd_v2"},
    )
    words = ("inspect", "d.safetensors", *(("--base", "base.safetensors") if given else ()))
    (found,) = run.ok(*words, "--json").json
    assert "normalised by the base's outputs" in found["loads_otherwise"]["ComfyUI"]
    assert any("convert --to-lora --base B" in one["remedy"] for one in found["findings"])
    if not given:
        assert "off by" not in found["loads_otherwise"]["ComfyUI"]
        return
    delta = load("d.safetensors")[name]
    own = delta.dense(weight)
    for title, what in (("ComfyUI", BASE_NORM), ("Forge", BASE_NORM)):
        other = computed_elsewhere(what, delta, weight)
        off = np.linalg.norm(other - own) / np.linalg.norm(own)
        assert found["base"]["elsewhere"][title] == pytest.approx(off, rel=1e-6)
        assert f"off by {off:.2g} of the trained change" in found["loads_otherwise"][title]
    assert f"off by {found['base']['elsewhere']['ComfyUI']:.2g}" in run.ok(*words).out
