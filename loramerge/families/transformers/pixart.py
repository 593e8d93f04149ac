"""PixArt α and Σ: blocks of the image that look at the text, with diffusers' and the original's names.

Σ has no embedding of the resolution. Tables of modulation are not layers and are left alone; so is the
text encoder.

Source of the names: diffusers' `PixArtTransformer2DModel`; of the original ones ComfyUI's
`pixart_to_diffusers`.
"""

from __future__ import annotations

from loramerge.families.encoders import t5_spellings
from loramerge.families.spec import Component, Family, Metadata
from loramerge.families.stacks import (
    Native,
    Row,
    Stack,
    expand,
    fused,
    heads,
    linear,
    native_slots,
    transformer_spellings,
)
from loramerge.families.t5 import T5, T5_SIGN, t5_modules

__all__ = ["FAMILY"]

_EMBEDDERS = (
    ("timestep_embedder", "t_embedder", "w"),
    ("resolution_embedder", "csize_embedder", "third"),
    ("aspect_ratio_embedder", "ar_embedder", "third"),
)
_TOP = (
    Row("pos_embed.proj", "conv", ("w", 4, 2, 2), True, Native("x_embedder.proj")),
    *(
        row
        for name, native, width in _EMBEDDERS
        for row in (
            linear(f"adaln_single.emb.{name}.linear_1", width, 256, f"{native}.mlp.0"),
            linear(f"adaln_single.emb.{name}.linear_2", width, width, f"{native}.mlp.2"),
        )
    ),
    linear("adaln_single.linear", "6w", "w", "t_block.1"),
    linear("caption_projection.linear_1", "w", 4096, "y_embedder.y_proj.fc1"),
    linear("caption_projection.linear_2", "w", "w", "y_embedder.y_proj.fc2"),
    linear("proj_out", 32, "w", "final_layer.linear"),
)
_BLOCK = (
    *fused(("attn1.to_q", "attn1.to_k", "attn1.to_v"), "w", "w", "attn.qkv"),
    linear("attn1.to_out.0", "w", "w", "attn.proj"),
    linear("attn2.to_q", "w", "w", "cross_attn.q_linear"),
    *fused(("attn2.to_k", "attn2.to_v"), "w", "w", "cross_attn.kv_linear"),
    linear("attn2.to_out.0", "w", "w", "cross_attn.proj"),
    linear("ff.net.0.proj", "4w", "w", "mlp.fc1"),
    linear("ff.net.2", "w", "4w", "mlp.fc2"),
)
_STACKS = (
    Stack("", "", (0,), _TOP),
    Stack("transformer_blocks.{}.", "blocks.{}.", range(28), _BLOCK),
)
_WIDTH = 1152
_SIZES = {"w": _WIDTH, "4w": 4 * _WIDTH, "6w": 6 * _WIDTH, "third": _WIDTH // 3}

FAMILY = Family(
    name="pixart",
    title="PixArt α and Σ",
    task="text-to-image",
    build=lambda: (
        Component("transformer", tuple(expand(_STACKS, _SIZES))),
        Component("text_encoder", tuple(t5_modules(T5()))),
    ),
    spellings={
        "transformer": transformer_spellings("original", native_slots(_STACKS)),
        "text_encoder": t5_spellings("text_encoders.t5xxl.transformer."),
    },
    metadata=Metadata(None, None, also=("pixart",)),
    verified="diffusers and transformers models on the meta device, names and shapes",
    classes={
        "transformer": "PixArtTransformer2DModel",
        "text_encoder": "T5EncoderModel",
    },
    prefixes={
        "kohya": {"text_encoder": ("lora_te_", "lora_te1_")},
        # without a folder's name it is an adapter of the language model, and of no family
        "peft": {"text_encoder": ("text_encoder/base_model.model.",)},
    },
    heads=heads(_STACKS),
    probes=(
        *(f"transformer_blocks.0.attn{n}.to_{x}" for n in (1, 2) for x in ("q", "k", "v")),
        "encoder.block.0.layer.0.SelfAttention.q",
    ),
    sign=rf"blocks[._]\d+[._](?:attn[12]?|cross_attn|ff|mlp)[._]|{T5_SIGN}",
    twins=("SANA 0.6B", "DiT"),
    common_dialect="diffusers",
    programs={"comfyui": "diffusers"},
    one_alpha=False,
)
