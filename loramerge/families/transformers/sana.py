"""SANA 1.6B: linear attention and convolutions, with diffusers' and the original's names.

The norms of queries and keys are those of SANA 1.5. Tables of modulation are not layers and are left
alone; so is the text encoder.

Source of the names: diffusers' `SanaTransformer2DModel`, and the original single file as diffusers'
`convert_sana_transformer_to_diffusers` reads it.
"""

from __future__ import annotations

from loramerge.families.decoder import DECODER_SIGN, GEMMA2_2B, decoder_modules, decoder_spellings
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
    norm,
    transformer_spellings,
)

__all__ = ["FAMILY"]


def _conv(
    name: str, rows: str, columns: str | int, kernel: int, native: str, *, bias: bool = True
) -> Row:
    return Row(name, "conv", (rows, columns, kernel, kernel), bias, Native(native))


_TOP = (
    _conv("patch_embed.proj", "w", 32, 1, "x_embedder.proj"),
    linear("time_embed.emb.timestep_embedder.linear_1", "w", 256, "t_embedder.mlp.0"),
    linear("time_embed.emb.timestep_embedder.linear_2", "w", "w", "t_embedder.mlp.2"),
    linear("time_embed.linear", "6w", "w", "t_block.1"),
    linear("caption_projection.linear_1", "w", 2304, "y_embedder.y_proj.fc1"),
    linear("caption_projection.linear_2", "w", "w", "y_embedder.y_proj.fc2"),
    norm("caption_norm", "w", "attention_y_norm"),
    linear("proj_out", 32, "w", "final_layer.linear"),
)
_BLOCK = (
    *fused(("attn1.to_q", "attn1.to_k", "attn1.to_v"), "w", "w", "attn.qkv", bias=False),
    linear("attn1.to_out.0", "w", "w", "attn.proj"),
    linear("attn2.to_q", "w", "w", "cross_attn.q_linear"),
    *fused(("attn2.to_k", "attn2.to_v"), "w", "w", "cross_attn.kv_linear"),
    linear("attn2.to_out.0", "w", "w", "cross_attn.proj"),
    *(
        norm(f"{name}.norm_{x}", "w", f"{native}.{x}_norm")
        for name, native in (("attn1", "attn"), ("attn2", "cross_attn"))
        for x in "qk"
    ),
    _conv("ff.conv_inverted", "2hidden", "w", 1, "mlp.inverted_conv.conv"),
    _conv("ff.conv_depth", "2hidden", 1, 3, "mlp.depth_conv.conv"),
    _conv("ff.conv_point", "w", "hidden", 1, "mlp.point_conv.conv", bias=False),
)
_STACKS = (
    Stack("", "", (0,), _TOP),
    Stack("transformer_blocks.{}.", "blocks.{}.", range(20), _BLOCK),
)
_WIDTH = 2240
_SIZES = {"w": _WIDTH, "6w": 6 * _WIDTH, "hidden": 5600, "2hidden": 2 * 5600}

FAMILY = Family(
    name="sana",
    title="SANA 1.6B",
    task="text-to-image",
    build=lambda: (
        Component("transformer", tuple(expand(_STACKS, _SIZES))),
        Component("text_encoder", tuple(decoder_modules(GEMMA2_2B))),
    ),
    spellings={
        "transformer": transformer_spellings("original", native_slots(_STACKS)),
        "text_encoder": decoder_spellings("text_encoders.gemma2_2b.transformer."),
    },
    metadata=Metadata(None, None, also=("sana",)),
    verified="diffusers and transformers models on the meta device, names and shapes; "
    "diffusers' converters of files",
    classes={
        "transformer": "SanaTransformer2DModel",
        "text_encoder": "Gemma2Model",
    },
    prefixes={
        "kohya": {"text_encoder": ("lora_te_", "lora_te1_")},
        # without a folder's name it is an adapter of the language model, and of no family
        "peft": {"text_encoder": ("text_encoder/base_model.model.",)},
    },
    heads=heads(_STACKS),
    probes=tuple(f"transformer_blocks.0.attn{n}.to_{x}" for n in (1, 2) for x in ("q", "k", "v")),
    sign=rf"blocks[._]\d+[._](?:attn[12]?|cross_attn|ff|mlp)[._]|{DECODER_SIGN}",
    twins=("SANA-Video",),
    common_dialect="diffusers",
    one_alpha=False,
)
