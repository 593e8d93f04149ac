"""`families NAME` and `dialects NAME` describe one, as `operators NAME` does."""

from __future__ import annotations

import pytest

from loramerge.dialects import DIALECTS
from loramerge.families import FAMILIES


def test_a_family_in_detail(run):
    out = run.ok("families", "sdxl").out
    for words in ("text_encoder_2, 260 modules", "model.diffusion_model.", "converted and baked",
                  "lora_unet_middle_block_1_", "stable-diffusion-xl-v1-base"):  # fmt: skip
        assert words in out
    found = run.ok("families", "flux1", "--json").json
    assert found["stems"]["kohya"].startswith("lora_unet_double_blocks_0_")
    assert found["written_for"]["comfyui"] == "comfyui"
    assert "31 % to 33 % (from 2 adapters)" in run.ok("families", "tiny").out
    assert "(from 4 adapters)" in run.ok("families", "sd15").out


def test_a_dialect_in_detail(run):
    out = run.ok("dialects", "peft").out
    assert "a folder" in out and "base_model.model." in out and ".lora_B.weight" in out
    assert run.ok("dialects", "kohya", "--json").json["prefixes"]["lora_te1_"] == "text_encoder"


@pytest.mark.parametrize("name", list(DIALECTS))
def test_every_dialect_is_described(run, name):
    assert name in run.ok("dialects", name).out


@pytest.mark.parametrize("name", ["sd15", "tiny", "wan", "z-image"])
def test_families_are_described(run, name):
    assert FAMILIES[name].title in run.ok("families", name).out


def test_unknown_names_are_refused_with_the_nearest(run):
    run.refused(4, "families", "sdx", says="did you mean sdxl?")
    run.refused(4, "dialects", "koya", says="did you mean kohya?")
