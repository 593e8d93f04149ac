"""Stable Diffusion XL, the refiner. Its words in headers follow the base's: no trainer has any."""

from __future__ import annotations

from loramerge.families.clip import CLIP_BIG_G
from loramerge.families.spec import Metadata
from loramerge.families.stable_diffusion import stable_diffusion
from loramerge.families.unet import Unet

__all__ = ["FAMILY"]

FAMILY = stable_diffusion(
    "sdxl-refiner",
    "Stable Diffusion XL refiner",
    Unet(
        widths=(384, 768, 1536, 1536),
        depths=(0, 4, 4, 0),
        mid_depth=4,
        context=1280,
        linear_projection=True,
        added=2560,
    ),
    {"text_encoder_2": CLIP_BIG_G},
    layout="sgm",
    stored={"text_encoder_2": "conditioner.embedders.0.model."},
    metadata=Metadata(
        "stable-diffusion-xl-v1-refiner", "sdxl_refiner_v1-0", also=("sdxl_refiner",)
    ),
    prefixes={"kohya": {"text_encoder_2": ("lora_te_", "lora_te1_", "lora_te2_")}},
    original_in=("kohya",),
    order=-2,
    task="image-to-image",
)
