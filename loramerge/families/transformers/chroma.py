"""Chroma: the blocks of Flux.1, all modulated by one guidance layer.

Chroma Radiance has the same blocks and the same guidance layer, and layers of pixels instead of those
for latents, of which diffusers has no class. The text encoder is T5-XXL.

Source of the names: diffusers' `ChromaTransformer2DModel`, and the original single file as
diffusers' `convert_chroma_transformer_checkpoint_to_diffusers` reads it. Of the layers of pixels:
ComfyUI's `ChromaRadiance` in the sizes of its `model_detection.py`, with either of its two last layers.
"""

from __future__ import annotations

from loramerge.families.encoders import t5_spellings
from loramerge.families.flux import DOUBLE, SINGLE
from loramerge.families.spec import Component, Family, Metadata
from loramerge.families.stacks import (
    Stack,
    expand,
    heads,
    linear,
    native_slots,
    norm,
    same,
    transformer_spellings,
)
from loramerge.families.t5 import T5, t5_modules

__all__ = ["FAMILY"]

_GUIDANCE = "distilled_guidance_layer"

_TOP = (
    linear(f"{_GUIDANCE}.in_proj", "guidance", 64),
    linear(f"{_GUIDANCE}.out_proj", "w", "guidance"),
    *(norm(f"{_GUIDANCE}.norms.{n}", "guidance", weight=".scale") for n in range(5)),
    linear("context_embedder", "w", 4096, "txt_in"),
    linear("x_embedder", "w", 64, "img_in"),
    linear("proj_out", 64, "w", "final_layer.linear"),
)
_LAYER = (
    linear("linear_1", "guidance", "guidance", "in_layer"),
    linear("linear_2", "guidance", "guidance", "out_layer"),
)
_PIXELS = (
    same("img_in_patch", "conv", ("w", 3, 16, 16), bias=True),
    linear("nerf_image_embedder.embedder.0", "pixel", 3 + 8 * 8),
    norm("nerf_final_layer.norm", "pixel", weight=".scale"),
    linear("nerf_final_layer.linear", 3, "pixel"),
    norm("nerf_final_layer_conv.norm", "pixel", weight=".scale"),
    same("nerf_final_layer_conv.conv", "conv", (3, "pixel", 3, 3), bias=True),
)
# the three matrices of a feed-forward are computed from the block's output
_OF_PIXELS = (
    linear("param_generator", 3 * 4 * 64 * 64, "w"),
    norm("norm", "pixel", weight=".scale"),
)
_LAYERS = f"{_GUIDANCE}.layers.{{}}."
_STACKS = (
    Stack("", "", (0,), _TOP),
    Stack(_LAYERS, _LAYERS, range(5), _LAYER),
    Stack("transformer_blocks.{}.", "double_blocks.{}.", range(19), DOUBLE),
    Stack("single_transformer_blocks.{}.", "single_blocks.{}.", range(38), SINGLE),
    Stack("", "", (0,), _PIXELS),
    Stack("nerf_blocks.{}.", "nerf_blocks.{}.", range(4), _OF_PIXELS),
)
_WIDTH = 3072
_SIZES = {
    "w": _WIDTH,
    "4w": 4 * _WIDTH,
    "5w": 5 * _WIDTH,
    "head": 128,
    "guidance": 5120,
    "pixel": 64,
}

FAMILY = Family(
    name="chroma",
    title="Chroma",
    task="text-to-image",
    gguf="flux",
    build=lambda: (
        Component("transformer", tuple(expand(_STACKS, _SIZES))),
        Component("text_encoder", tuple(t5_modules(T5()))),
    ),
    spellings={
        "transformer": transformer_spellings("bfl", native_slots(_STACKS)),
        "text_encoder": t5_spellings("text_encoders.t5xxl.transformer."),
    },
    metadata=Metadata("chroma", "chroma", "networks.lora_flux", also=("chroma",)),
    verified="diffusers and transformers models on the meta device, names and shapes; "
    "diffusers' converters of files; of Radiance, ComfyUI's model",
    classes={"transformer": "ChromaTransformer2DModel", "text_encoder": "T5EncoderModel"},
    prefixes={"kohya": {"text_encoder": ("lora_te3_", "lora_te1_", "lora_te_")}},
    heads=heads(_STACKS),
    probes=(
        *(f"transformer_blocks.0.attn.to_{x}" for x in ("q", "k", "v", "out.0")),
        *(f"single_transformer_blocks.0.attn.to_{x}" for x in ("q", "k", "v")),
        "single_transformer_blocks.0.proj_mlp",
        "single_transformer_blocks.0.proj_out",
        "encoder.block.0.layer.0.SelfAttention.q",
    ),
    sign=r"(?:double|single)_blocks[._]|(?<!\d[._])transformer_blocks[._]|distilled_guidance|enc\.blk\.",
    one_alpha=False,
    programs={"comfyui": "comfyui"},
)
