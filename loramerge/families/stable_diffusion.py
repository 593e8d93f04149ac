"""The template of the Stable Diffusion families: one UNet, and one or two CLIP text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from loramerge.families.clip import Clip, clip_modules, openclip_slot
from loramerge.families.levels import without_text_model
from loramerge.families.spec import (
    Component,
    Family,
    Metadata,
    Module,
    Parameter,
    Slot,
    Spelling,
    plain_slot,
)
from loramerge.families.unet import Unet, ldm_slot, unet_modules

__all__ = ["LISTED", "stable_diffusion"]

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
_CLASSES = {
    "unet": "UNet2DConditionModel",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
}
# what ComfyUI calls CLIP, by its width, in files of a whole pipeline
_IN_COMFYUI = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}
_HEADS = (
    "input_blocks.",
    "middle_block.",
    "output_blocks.",
    "time_embed.",
    "label_emb.",
    "out.0",
    "out.2",
)
# prefixes of lora_diffusion's lists, which only these families ever had
LISTED = {"lora_diffusion": {"unet": ("unet:",), "text_encoder": ("text_encoder:",)}}


def _short(module: Module, parameter: Parameter) -> Slot:
    return Slot(f"{without_text_model(module.path)}.{parameter}")


def stable_diffusion(
    name: str,
    title: str,
    unet: Unet,
    encoders: Mapping[str, Clip],
    *,
    layout: str,
    stored: Mapping[str, str],
    metadata: Metadata,
    prefixes: Mapping[str, Mapping[str, tuple[str, ...]]] = {},
    **more: Any,
) -> Family:
    """Make a family of one UNet and one or two CLIP text encoders.

    Args:
        encoders: the text encoders by component name.
        layout: name of the single-file layout, `ldm` or `sgm`.
        stored: prefix of each text encoder in that layout; one that ends in `.model.` has
            OpenCLIP's names, the others transformers'.
        prefixes: see `Family`; ComfyUI's are added.
        more: further columns of the family.
    """

    def build() -> tuple[Component, ...]:
        texts = (Component(n, tuple(clip_modules(clip))) for n, clip in encoders.items())
        return (Component("unet", tuple(unet_modules(unet))), *texts)

    def in_single(prefix: str) -> tuple[Spelling, ...]:
        if prefix.endswith(".model."):
            return (Spelling(layout, prefix, openclip_slot),)
        return (Spelling(layout, prefix, plain_slot), Spelling(layout, prefix, _short))

    in_comfyui = {
        component: (f"text_encoders.{_IN_COMFYUI[clip.width]}.transformer.",)
        for component, clip in encoders.items()
        if clip.width in _IN_COMFYUI
    }
    in_folder = (Spelling("diffusers", "", plain_slot), Spelling("diffusers", "", _short))
    return Family(
        name=name,
        title=title,
        task=more.pop("task", "text-to-image"),
        build=build,
        spellings={
            "unet": (
                *(Spelling(layout, prefix, partial(ldm_slot, unet)) for prefix in _LDM_PREFIXES),
                *(Spelling("diffusers", prefix, plain_slot) for prefix in _DIFFUSERS_PREFIXES),
            ),
            **{name: (*in_single(prefix), *in_folder) for name, prefix in stored.items()},
        },
        metadata=metadata,
        verified="diffusers and transformers models on the meta device, names and shapes",
        classes={n: _CLASSES[n] for n in ("unet", *encoders)},
        probes=_PROBES,
        heads=_HEADS,
        prefixes={"comfyui": in_comfyui, **prefixes},
        **more,
    )
