"""The Stable Diffusion families: SD1.5, SD2.1, SDXL base and refiner, and a tiny one.

Each is one literal.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from loramerge.families.clip import Clip, clip_modules, openclip_slot
from loramerge.families.levels import without_text_model
from loramerge.families.spec import Component, Family, Module, Parameter, Slot, Spelling, plain_slot
from loramerge.families.unet import Unet, ldm_slot, unet_modules

__all__ = ["SD15", "SD21", "SDXL", "SDXL_REFINER", "TINY"]

_CLIP_L = Clip(width=768, layers=12)
_CLIP_H = Clip(width=1024, layers=23)  # the 24th layer of the OpenCLIP file is never used
_CLIP_BIG_G = Clip(width=1280, layers=32, projection=1280)

# Before the UNet's names in a single file: usual, as ComfyUI exports it, and the UNet alone.
_LDM_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
_DIFFUSERS_PREFIXES = ("", "unet.")


_PROBES = (
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "text_model.encoder.layers.0.self_attn.q_proj",
)


def _short(module: Module, parameter: Parameter) -> Slot:
    return Slot(f"{without_text_model(module.path)}.{parameter}")


def _family(
    name: str,
    title: str,
    unet: Unet,
    encoders: Mapping[str, Clip],
    single: str,
    stored: Mapping[str, str],
    metadata: tuple[str, ...],
    *,
    only_exact: bool = False,
) -> Family:
    """Make a family of one UNet and one or two CLIP text encoders.

    Args:
        encoders: the text encoders by component name.
        single: name of the single-file layout, `ldm` or `sgm`.
        stored: prefix of each text encoder in that layout; one that ends in `.model.` has
            OpenCLIP's names, the others transformers'.
    """

    def build() -> tuple[Component, ...]:
        texts = (Component(n, tuple(clip_modules(clip))) for n, clip in encoders.items())
        return (Component("unet", tuple(unet_modules(unet))), *texts)

    def in_single(prefix: str) -> tuple[Spelling, ...]:
        if prefix.endswith(".model."):
            return (Spelling(single, prefix, openclip_slot),)
        return (Spelling(single, prefix, plain_slot), Spelling(single, prefix, _short))

    in_folder = (Spelling("diffusers", "", plain_slot), Spelling("diffusers", "", _short))
    return Family(
        name=name,
        title=title,
        build=build,
        spellings={
            "unet": (
                *(Spelling(single, prefix, partial(ldm_slot, unet)) for prefix in _LDM_PREFIXES),
                *(Spelling("diffusers", prefix, plain_slot) for prefix in _DIFFUSERS_PREFIXES),
            ),
            **{name: (*in_single(prefix), *in_folder) for name, prefix in stored.items()},
        },
        metadata=metadata,
        probes=_PROBES,
        verified="diffusers and transformers models on the meta device, names and shapes",
        only_exact=only_exact,
    )


SD15 = _family(
    "sd15",
    "Stable Diffusion 1.x",
    Unet(
        widths=(320, 640, 1280, 1280),
        depths=(1, 1, 1, 0),
        mid_depth=1,
        context=768,
        linear_projection=False,
    ),
    {"text_encoder": _CLIP_L},
    "ldm",
    {"text_encoder": "cond_stage_model.transformer."},
    ("sd_v1", "stable-diffusion-v1"),
)

SD21 = _family(
    "sd21",
    "Stable Diffusion 2.x",
    Unet(
        widths=(320, 640, 1280, 1280),
        depths=(1, 1, 1, 0),
        mid_depth=1,
        context=1024,
        linear_projection=True,
    ),
    {"text_encoder": _CLIP_H},
    "ldm",
    {"text_encoder": "cond_stage_model.model."},
    ("sd_v2", "stable-diffusion-v2"),
)

SDXL = _family(
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
    {"text_encoder": _CLIP_L, "text_encoder_2": _CLIP_BIG_G},
    "sgm",
    {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    ("sdxl_base", "stable-diffusion-xl-v1-base"),
)

SDXL_REFINER = _family(
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
    {"text_encoder_2": _CLIP_BIG_G},
    "sgm",
    {"text_encoder_2": "conditioner.embedders.0.model."},
    ("sdxl_refiner", "stable-diffusion-xl-v1-refiner"),
)

TINY = _family(
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
    "ldm",
    {"text_encoder": "cond_stage_model.transformer."},
    ("loramerge-tiny",),
    only_exact=True,
)
