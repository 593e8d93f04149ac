"""Flux.1: the transformer with diffusers' and Black Forest Labs' names, CLIP-L and T5-XXL.

Source of the names: diffusers' `FluxTransformer2DModel` (verified), and the original single files as
diffusers' `convert_flux_transformer_checkpoint_to_diffusers` reads them (verified by conversion).
"""

from __future__ import annotations

from loramerge.families.clip import CLIP_L, clip_modules
from loramerge.families.encoders import clip_spellings, t5_spellings
from loramerge.families.spec import Component, Family, Metadata
from loramerge.families.stacks import (
    Native,
    Row,
    Stack,
    expand,
    heads,
    native_slots,
    transformer_spellings,
)
from loramerge.families.t5 import T5, t5_modules

__all__ = ["FAMILY"]


def _qkv(fused: str, *names: str) -> tuple[Row, ...]:
    """Queries, keys and values: equal thirds of one tensor, in this order."""
    return tuple(
        Row(name, "linear", ("w", "w"), True, Native(fused, part, 3))
        for part, name in enumerate(names)
    )


def _norms(*names: tuple[str, str]) -> tuple[Row, ...]:
    return tuple(
        Row(name, "norm", ("head",), False, Native(native, weight=".scale"))
        for name, native in names
    )


_TOP = (
    *(
        row
        for name, native, width in (
            ("timestep_embedder", "time_in", "frequencies"),
            ("guidance_embedder", "guidance_in", "frequencies"),
            ("text_embedder", "vector_in", "pooled"),
        )
        for row in (
            Row(f"time_text_embed.{name}.linear_1", "linear", ("w", width), True,
                Native(f"{native}.in_layer")),
            Row(f"time_text_embed.{name}.linear_2", "linear", ("w", "w"), True,
                Native(f"{native}.out_layer")),
        )
    ),
    Row("context_embedder", "linear", ("w", "context"), True, Native("txt_in")),
    Row("x_embedder", "linear", ("w", "channels"), True, Native("img_in")),
)  # fmt: skip
_DOUBLE = (
    Row("norm1.linear", "linear", ("6w", "w"), True, Native("img_mod.lin")),
    Row("norm1_context.linear", "linear", ("6w", "w"), True, Native("txt_mod.lin")),
    *_norms(
        ("attn.norm_q", "img_attn.norm.query_norm"),
        ("attn.norm_k", "img_attn.norm.key_norm"),
    ),
    *_qkv("img_attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    Row("attn.to_out.0", "linear", ("w", "w"), True, Native("img_attn.proj")),
    *_norms(
        ("attn.norm_added_q", "txt_attn.norm.query_norm"),
        ("attn.norm_added_k", "txt_attn.norm.key_norm"),
    ),
    *_qkv("txt_attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    Row("attn.to_add_out", "linear", ("w", "w"), True, Native("txt_attn.proj")),
    Row("ff.net.0.proj", "linear", ("4w", "w"), True, Native("img_mlp.0")),
    Row("ff.net.2", "linear", ("w", "4w"), True, Native("img_mlp.2")),
    Row("ff_context.net.0.proj", "linear", ("4w", "w"), True, Native("txt_mlp.0")),
    Row("ff_context.net.2", "linear", ("w", "4w"), True, Native("txt_mlp.2")),
)
# linear1 is queries, keys, values and the feed-forward, which is four times as high
_SINGLE = (
    Row("norm.linear", "linear", ("3w", "w"), True, Native("modulation.lin")),
    *_norms(("attn.norm_q", "norm.query_norm"), ("attn.norm_k", "norm.key_norm")),
    Row("attn.to_q", "linear", ("w", "w"), True, Native("linear1", 0, 7)),
    Row("attn.to_k", "linear", ("w", "w"), True, Native("linear1", 1, 7)),
    Row("attn.to_v", "linear", ("w", "w"), True, Native("linear1", 2, 7)),
    Row("proj_mlp", "linear", ("4w", "w"), True, Native("linear1", 3, 7, 4)),
    Row("proj_out", "linear", ("w", "5w"), True, Native("linear2")),
)
# the original modulates by (shift, scale), diffusers by (scale, shift)
_LAST = (
    Row("norm_out.linear", "linear", ("2w", "w"), True,
        Native("final_layer.adaLN_modulation.1", swapped=True)),
    Row("proj_out", "linear", ("channels", "w"), True, Native("final_layer.linear")),
)  # fmt: skip


_STACKS = (
    Stack("", "", (0,), _TOP),
    Stack("transformer_blocks.{}.", "double_blocks.{}.", range(19), _DOUBLE),
    Stack("single_transformer_blocks.{}.", "single_blocks.{}.", range(38), _SINGLE),
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
                    "final_layer",
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
    twins=("Chroma", "Bria", "Bria FIBO", "LongCat-Image"),
    one_alpha=False,
    programs={"comfyui": "comfyui"},
)
