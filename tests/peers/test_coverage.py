"""Every model whose adapters diffusers loads is a family here, or the docs say why not."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from loramerge.families import FAMILIES

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "formats.md"
# loader or converter → the families whose adapters it loads
COVERED = {
    "StableDiffusionLoraLoaderMixin": ("sd15", "sd21"),
    "LoraLoaderMixin": ("sd15", "sd21"),  # its former name
    "StableDiffusionXLLoraLoaderMixin": ("sdxl",),
    "SD3LoraLoaderMixin": ("sd3", "sd35-medium", "sd35-large"),
    "AuraFlowLoraLoaderMixin": ("auraflow",),
    "FluxLoraLoaderMixin": ("flux1", "chroma"),
    "CogVideoXLoraLoaderMixin": ("cogvideox",),
    "Mochi1LoraLoaderMixin": ("mochi",),
    "LTXVideoLoraLoaderMixin": ("ltx-video", "ltx-video-13b"),
    "LTX2LoraLoaderMixin": ("ltx-2",),
    "SanaLoraLoaderMixin": ("sana",),
    "HeliosLoraLoaderMixin": ("wan",),  # all that adapters of it change
    "HunyuanVideoLoraLoaderMixin": ("hunyuan-video", "hunyuan-video-15"),
    "Lumina2LoraLoaderMixin": ("lumina2",),
    "KandinskyLoraLoaderMixin": ("kandinsky5",),
    "WanLoraLoaderMixin": ("wan",),
    "SkyReelsV2LoraLoaderMixin": ("wan",),  # its published networks have the sizes of Wan
    "CogView4LoraLoaderMixin": ("cogview4",),
    "HiDreamImageLoraLoaderMixin": ("hidream-i1",),
    "QwenImageLoraLoaderMixin": ("qwen-image", "qwen-image-21"),
    "Krea2LoraLoaderMixin": ("krea2",),
    "ZImageLoraLoaderMixin": ("z-image",),
    "AnimaLoraLoaderMixin": ("anima",),
    "Flux2LoraLoaderMixin": ("flux2-dev", "flux2-klein-4b", "flux2-klein-9b"),
    "Flux3LoraLoaderMixin": ("flux3",),
    "Ideogram4LoraLoaderMixin": ("ideogram4",),
    "ErnieImageLoraLoaderMixin": ("ernie-image",),
    "CosmosLoraLoaderMixin": ("anima", "cosmos2-14b"),
    "AceStepLoraLoaderMixin": ("ace-step",),
    "MiniMaxH3LoraLoaderMixin": ("minimax-h3",),
    "_convert_non_diffusers_lora_to_diffusers": ("sd15", "sd21", "sdxl"),
    "_convert_kohya_flux_lora_to_diffusers": ("flux1",),
    "_convert_xlabs_flux_lora_to_diffusers": ("flux1",),
    "_convert_bfl_flux_control_lora_to_diffusers": ("flux1",),
    "_convert_fal_kontext_lora_to_diffusers": ("flux1",),
    "_convert_hunyuan_video_lora_to_diffusers": ("hunyuan-video",),
    "_convert_non_diffusers_lumina2_lora_to_diffusers": ("lumina2",),
    "_convert_non_diffusers_wan_lora_to_diffusers": ("wan",),
    "_convert_musubi_wan_lora_to_diffusers": ("wan",),
    "_convert_non_diffusers_hidream_lora_to_diffusers": ("hidream-i1",),
    "_convert_non_diffusers_ltxv_lora_to_diffusers": ("ltx-video", "ltx-video-13b"),
    "_convert_non_diffusers_ltx2_lora_to_diffusers": ("ltx-2",),
    "_convert_non_diffusers_qwen_lora_to_diffusers": ("qwen-image",),
    "_convert_non_diffusers_anima_lora_to_diffusers": ("anima",),
    "_convert_non_diffusers_flux2_lora_to_diffusers": ("flux2-dev",),
    "_convert_non_diffusers_flux3_lora_to_diffusers": ("flux3",),
    "_convert_kohya_flux2_lora_to_diffusers": ("flux2-dev",),
    "_convert_non_diffusers_lokr_to_diffusers": ("flux2-dev",),
    "_convert_non_diffusers_flux2_lokr_to_diffusers": ("flux2-dev",),
    "_convert_lycoris_flux2_lokr_to_diffusers": ("flux2-dev",),
    "_convert_non_diffusers_z_image_lora_to_diffusers": ("z-image",),
    "_convert_non_diffusers_ideogram4_lora_to_diffusers": ("ideogram4",),
    "_convert_non_diffusers_krea2_lora_to_diffusers": ("krea2",),
    "_convert_non_diffusers_ace_step_lora_to_diffusers": ("ace-step",),
    "_convert_non_diffusers_minimax_h3_lora_to_diffusers": ("minimax-h3",),
}


def _uncovered() -> dict[str, str]:
    """Return the loaders that the page lists as not covered, and why."""
    table = PAGE.read_text("utf-8").partition("| not covered | because |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.MULTILINE)
    return {
        name: why for what, why in rows for name in re.findall(r"`(\w+)`", what) if len(why) > 10
    }


def _loaders(module: Any) -> set[str]:
    """Names of the loaders of adapters that a module defines."""
    return {
        name
        for name, found in vars(module).items()
        if inspect.isclass(found) and name.endswith("LoraLoaderMixin")
    }


def _converters(module: Any) -> set[str]:
    """Names of the converters of adapters that a module defines."""
    return {name for name in vars(module) if re.fullmatch(r"_convert_\w+_to_diffusers", name)}


def _missing(found: set[str]) -> set[str]:
    return found - COVERED.keys() - _uncovered().keys()


def test_every_loader_of_diffusers_is_covered_or_listed() -> None:
    module = pytest.importorskip("diffusers.loaders.lora_pipeline")
    assert _missing(_loaders(module)) == set()


def test_every_converter_of_diffusers_is_covered_or_listed() -> None:
    module = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    assert _missing(_converters(module)) == set()


def test_what_is_said_to_be_covered_exists() -> None:
    assert all(family in FAMILIES for families in COVERED.values() for family in families)
    assert not COVERED.keys() & _uncovered().keys()


def test_a_new_loader_would_be_named() -> None:
    module = ModuleType("lora_pipeline")
    module.NewestLoraLoaderMixin = type("NewestLoraLoaderMixin", (), {})  # type: ignore[attr-defined]
    module._convert_newest_lora_to_diffusers = print  # type: ignore[attr-defined]
    assert _missing(_loaders(module)) == {"NewestLoraLoaderMixin"}
    assert _missing(_converters(module)) == {"_convert_newest_lora_to_diffusers"}
