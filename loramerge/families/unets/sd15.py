"""Stable Diffusion 1.x."""

from __future__ import annotations

from loramerge.families.clip import CLIP_L
from loramerge.families.spec import Metadata
from loramerge.families.stable_diffusion import LISTED, stable_diffusion
from loramerge.families.unet import Unet
from loramerge.families.usual import Usual

__all__ = ["FAMILY"]

FAMILY = stable_diffusion(
    "sd15",
    "Stable Diffusion 1.x",
    Unet(
        widths=(320, 640, 1280, 1280),
        depths=(1, 1, 1, 0),
        mid_depth=1,
        context=768,
        linear_projection=False,
    ),
    {"text_encoder": CLIP_L},
    layout="ldm",
    stored={"text_encoder": "cond_stage_model.transformer."},
    metadata=Metadata("stable-diffusion-v1", "sd_v1", v2=False),
    prefixes={"kohya": {"text_encoder": ("lora_te_", "lora_te1_")}, **LISTED},
    gguf="sd1",
    unreached={
        "text_encoder.text_model.encoder.layers.11.*": "training at CLIP skip 2 takes the output "
        "of the layer before the last"
    },
    usual_norm=Usual(0.082, 6.5, 4),
    order=-5,
)
