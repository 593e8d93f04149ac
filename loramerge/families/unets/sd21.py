"""Stable Diffusion 2.x."""

from __future__ import annotations

from loramerge.families.clip import Clip
from loramerge.families.spec import Metadata
from loramerge.families.stable_diffusion import LISTED, stable_diffusion
from loramerge.families.unet import Unet

__all__ = ["FAMILY"]

FAMILY = stable_diffusion(
    "sd21",
    "Stable Diffusion 2.x",
    Unet(
        widths=(320, 640, 1280, 1280),
        depths=(1, 1, 1, 0),
        mid_depth=1,
        context=1024,
        linear_projection=True,
    ),
    # the 24th layer of the OpenCLIP file is never used
    {"text_encoder": Clip(width=1024, layers=23)},
    layout="ldm",
    stored={"text_encoder": "cond_stage_model.model."},
    metadata=Metadata(
        "stable-diffusion-v2-512",
        "sd_v2",
        also=("stable-diffusion-v2",),
        v2=True,
        v_prediction=("stable-diffusion-v2-768-v", "sd_v2_v"),
    ),
    prefixes={"kohya": {"text_encoder": ("lora_te_", "lora_te1_")}, **LISTED},
    gguf="sd1",
    order=-4,
)
