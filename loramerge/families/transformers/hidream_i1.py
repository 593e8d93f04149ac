"""HiDream I1: double and single blocks, each with experts; the names are diffusers' own.

Only the transformer is covered, not the four text encoders.

Source of the names: diffusers' `HiDreamImageTransformer2DModel`, whose names single files have too.
Of the sizes: the published configuration.
"""

from __future__ import annotations

from loramerge.families.clip import Clip, clip_modules
from loramerge.families.decoder import DECODER_SIGN, LLAMA3_8B, decoder_modules, decoder_spellings
from loramerge.families.encoders import clip_spellings, t5_spellings
from loramerge.families.spec import Component, Family, Metadata
from loramerge.families.stacks import (
    Row,
    Stack,
    expand,
    heads,
    linear,
    native_slots,
    norm,
    transformer_spellings,
)
from loramerge.families.t5 import T5, T5_SIGN, t5_modules

__all__ = ["FAMILY"]


def _attention(end: str = "") -> tuple[Row, ...]:
    return (
        *(linear(f"block.attn1.to_{x}{end}", "w", "w") for x in ("q", "k", "v", "out")),
        norm(f"block.attn1.q_rms_norm{end}", "w"),
        norm(f"block.attn1.k_rms_norm{end}", "w"),
    )


def _feed_forward(name: str, hidden: str) -> tuple[Row, ...]:
    return (
        linear(f"{name}.w1", hidden, "w", bias=False),
        linear(f"{name}.w2", "w", hidden, bias=False),
        linear(f"{name}.w3", hidden, "w", bias=False),
    )


_EXPERTS = (
    *_feed_forward("block.ff_i.shared_experts", "shared"),
    *(row for n in range(4) for row in _feed_forward(f"block.ff_i.experts.{n}", "hidden")),
    linear("block.ff_i.gate", 4, "w", bias=False),
)
_DOUBLE = (
    linear("block.adaLN_modulation.1", "12w", "w"),
    *_attention(),
    *_attention("_t"),
    *_EXPERTS,
    *_feed_forward("block.ff_t", "hidden"),
)
_SINGLE = (linear("block.adaLN_modulation.1", "6w", "w"), *_attention(), *_EXPERTS)
_TOP = (
    linear("t_embedder.timestep_embedder.linear_1", "w", 256),
    linear("t_embedder.timestep_embedder.linear_2", "w", "w"),
    linear("p_embedder.pooled_embedder.linear_1", "w", 2048),
    linear("p_embedder.pooled_embedder.linear_2", "w", "w"),
    linear("x_embedder.proj", "w", 64),
    linear("final_layer.linear", 64, "w"),
    linear("final_layer.adaLN_modulation.1", "2w", "w"),
    *(linear(f"caption_projection.{n}.linear", "w", 4096, bias=False) for n in range(49)),
)
_BLOCKS = "{}_stream_blocks.{{}}."
_STACKS = (
    Stack("", "", (0,), _TOP),
    *(
        Stack(_BLOCKS.format(sort), _BLOCKS.format(sort), range(count), rows)
        for sort, count, rows in (("double", 16, _DOUBLE), ("single", 32, _SINGLE))
    ),
)
_WIDTH = 2560
_SIZES = {
    "w": _WIDTH, "2w": 2 * _WIDTH, "6w": 6 * _WIDTH, "12w": 12 * _WIDTH, "shared": 3584,
    "hidden": 6912,
}  # fmt: skip

# with more positions than those of other models
_LONG_L = Clip(width=768, layers=12, projection=768, positions=248)
_LONG_G = Clip(width=1280, layers=32, projection=1280, positions=218)

FAMILY = Family(
    name="hidream-i1",
    title="HiDream I1",
    task="text-to-image",
    gguf="hidream",
    build=lambda: (
        Component("transformer", tuple(expand(_STACKS, _SIZES))),
        Component("text_encoder", tuple(clip_modules(_LONG_L))),
        Component("text_encoder_2", tuple(clip_modules(_LONG_G))),
        Component("text_encoder_3", tuple(t5_modules(T5()))),
        Component("text_encoder_4", tuple(decoder_modules(LLAMA3_8B, with_head=True))),
    ),
    spellings={
        "transformer": transformer_spellings("original", native_slots(_STACKS)),
        "text_encoder": clip_spellings("text_encoders.clip_l.transformer."),
        "text_encoder_2": clip_spellings("text_encoders.clip_g.transformer."),
        "text_encoder_3": t5_spellings("text_encoders.t5xxl.transformer."),
        "text_encoder_4": decoder_spellings("text_encoders.llama.transformer."),
    },
    metadata=Metadata(None, None, also=("hidream",)),
    verified="diffusers and transformers models on the meta device, names and shapes; "
    "diffusers' converters of files",
    classes={
        "transformer": "HiDreamImageTransformer2DModel",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
        "text_encoder_4": "LlamaForCausalLM",
    },
    # without a folder's name it is an adapter of the language model, and of no family
    prefixes={"peft": {"text_encoder_4": ("text_encoder_4/base_model.model.",)}},
    heads=heads(_STACKS),
    probes=(
        *(f"double_stream_blocks.0.block.attn1.to_{x}" for x in ("q", "k", "v", "out")),
        "single_stream_blocks.0.block.attn1.to_q",
        "text_model.encoder.layers.0.self_attn.q_proj",
        "encoder.block.0.layer.0.SelfAttention.q",
    ),
    sign=rf"(?:double|single)_stream_blocks[._]|{T5_SIGN}|{DECODER_SIGN}",
    common_dialect="comfyui",
    programs={"comfyui": "comfyui"},
    one_alpha=False,
)
