"""Flux.1: the transformer with diffusers' and Black Forest Labs' names, CLIP-L and T5-XXL.

Source of the names: diffusers' `FluxTransformer2DModel` (verified), and the original single files
as diffusers' `convert_flux_transformer_checkpoint_to_diffusers` reads them (verified by
conversion).
"""

from __future__ import annotations

from loramerge.families.clip import CLIP_L, clip_modules
from loramerge.families.encoders import clip_spellings, t5_spellings
from loramerge.families.flux import (
    DOUBLE,
    DOUBLE_MODULATION,
    SINGLE,
    SINGLE_MODULATION,
    embedder,
)
from loramerge.families.spec import Component, Family, Metadata
from loramerge.families.stacks import (
    Stack,
    expand,
    heads,
    linear,
    native_slots,
    transformer_spellings,
)
from loramerge.families.t5 import T5, t5_modules

__all__ = ["FAMILY"]


_TOP = (
    *embedder("time_text_embed.timestep_embedder", "time_in", "frequencies"),
    *embedder("time_text_embed.guidance_embedder", "guidance_in", "frequencies"),
    *embedder("time_text_embed.text_embedder", "vector_in", "pooled"),
    linear("context_embedder", "w", "context", "txt_in"),
    linear("x_embedder", "w", "channels", "img_in"),
)
# the original modulates by (shift, scale), diffusers by (scale, shift)
_LAST = (
    linear("norm_out.linear", "2w", "w", "final_layer.adaLN_modulation.1", swapped=True),
    linear("proj_out", "channels", "w", "final_layer.linear"),
)
_STACKS = (
    Stack("", "", (0,), _TOP),
    Stack("transformer_blocks.{}.", "double_blocks.{}.", range(19), (*DOUBLE_MODULATION, *DOUBLE)),
    Stack(
        "single_transformer_blocks.{}.",
        "single_blocks.{}.",
        range(38),
        (*SINGLE_MODULATION, *SINGLE),
    ),
    Stack("", "", (0,), _LAST),
)
_WIDTH = 3072
_SIZES = {
    **{f"{n}w": n * _WIDTH for n in range(2, 7)},
    "w": _WIDTH, "head": 128, "frequencies": 256, "pooled": 768, "context": 4096, "channels": 64,
}  # fmt: skip


def _build() -> tuple[Component, ...]:
    return (
        Component("transformer", tuple(expand(_STACKS, _SIZES))),
        Component("text_encoder", tuple(clip_modules(CLIP_L))),
        Component("text_encoder_2", tuple(t5_modules(T5()))),
    )


FAMILY = Family(
    name="flux1",
    title="Flux.1",
    task="text-to-image",
    gguf="flux",
    build=_build,
    spellings={
        "transformer": transformer_spellings("bfl", native_slots(_STACKS)),
        "text_encoder": clip_spellings("text_encoders.clip_l.transformer."),
        "text_encoder_2": t5_spellings("text_encoders.t5xxl.transformer."),
    },
    # which of dev and schnell, no weight tells
    metadata=Metadata("flux-1", "flux1", "networks.lora_flux", also=("flux",)),
    verified="diffusers and transformers models on the meta device, names and shapes",
    classes={
        "transformer": "FluxTransformer2DModel",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
    },
    prefixes={
        "kohya": {"text_encoder_2": ("lora_te3_", "lora_te2_")},  # T5, the second OneTrainer's
        "onetrainer": {
            "transformer": ("lora_transformer_", "transformer."),
            "text_encoder": ("lora_te1_", "clip_l."),
            "text_encoder_2": ("lora_te2_", "t5."),
        },
        "xlabs": {"transformer": ("", "diffusion_model.")},
    },
    heads=heads(_STACKS),
    marks={
        "onetrainer": (
            *(
                f"transformer.{name}."
                for name in (
                    "double_blocks",
                    "single_blocks",
                    "time_in",
                    "vector_in",
                    "guidance_in",
                )
            ),
            "clip_l.",
            "t5.",
        ),
        "xlabs": ("double_blocks.", "single_blocks."),
    },
    probes=(
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.attn.to_k",
        "transformer_blocks.0.attn.to_v",
        "transformer_blocks.0.attn.to_out.0",
        "single_transformer_blocks.0.attn.to_q",
        "single_transformer_blocks.0.attn.to_k",
        "single_transformer_blocks.0.attn.to_v",
        "single_transformer_blocks.0.proj_mlp",
        "single_transformer_blocks.0.proj_out",
        "text_model.encoder.layers.0.self_attn.q_proj",
        "encoder.block.0.layer.0.SelfAttention.q",
    ),
    twins=("Chroma", "Bria", "Bria FIBO", "LongCat-Image", "Ovis-Image"),
    one_alpha=False,
    programs={"comfyui": "comfyui"},
)
