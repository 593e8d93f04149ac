"""The tiny model that comes with loramerge: a small network named as its large relatives are."""

from __future__ import annotations

from loramerge.families.clip import Clip
from loramerge.families.spec import Metadata
from loramerge.families.stable_diffusion import stable_diffusion
from loramerge.families.unet import Unet
from loramerge.families.usual import Usual

__all__ = ["FAMILY"]

FAMILY = stable_diffusion(
    "tiny",
    "the tiny model that comes with loramerge",
    Unet(
        widths=(64, 88),
        depths=(1, 1),
        mid_depth=1,
        context=64,
        linear_projection=True,
        layers=1,
    ),
    {"text_encoder": Clip(width=64, layers=2, vocabulary=615, positions=24)},
    layout="ldm",
    stored={"text_encoder": "cond_stage_model.transformer."},
    metadata=Metadata("loramerge-tiny", "loramerge-tiny"),
    shapes_only=True,
    order=-1,
    usual_change=Usual(0.31, 0.33, 2),
)
