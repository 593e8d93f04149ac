"""Stable Diffusion XL, the base."""

from __future__ import annotations

from loramerge.families.clip import CLIP_BIG_G, CLIP_L
from loramerge.families.spec import Metadata
from loramerge.families.stable_diffusion import stable_diffusion
from loramerge.families.unet import Unet

__all__ = ["FAMILY"]

FAMILY = stable_diffusion(
    "sdxl",
    "Stable Diffusion XL",
    Unet(
        widths=(320, 640, 1280),
        depths=(0, 2, 10),
        mid_depth=10,
        context=2048,
        linear_projection=True,
        added=2816,
    ),
    {"text_encoder": CLIP_L, "text_encoder_2": CLIP_BIG_G},
    layout="sgm",
    stored={
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    metadata=Metadata("stable-diffusion-xl-v1-base", "sdxl_base_v1-0", also=("sdxl_base",)),
    original_in=("kohya",),
    gguf="sdxl",
    unreached={
        "text_encoder.text_model.encoder.layers.11.*": "SDXL takes the output of the layer before "
        "CLIP-L's last"
    },
    paired_encoders=True,
    order=-3,
)
