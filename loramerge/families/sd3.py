"""The template of Stable Diffusion 3 and 3.5.

The joint transformer, two CLIP text encoders with projections, and T5-XXL.

Source of the names: diffusers' `SD3Transformer2DModel` (verified), and the original single files as
diffusers' `convert_sd3_transformer_checkpoint_to_diffusers` reads them (verified by conversion).
The positional embedding is not a layer and is left alone.
"""

from __future__ import annotations

from loramerge.families.clip import CLIP_BIG_G, Clip, clip_modules
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

__all__ = ["sd3"]


def _attention(name: str, native: str, *, normed: bool) -> tuple[Row, ...]:
    """Queries, keys, values and output of the image's attention."""
    rows = tuple(
        Row(f"{name}.to_{x}", "linear", ("w", "w"), True, Native(f"{native}.qkv", i, 3))
        for i, x in enumerate("qkv")
    )
    norms = tuple(
        Row(f"{name}.norm_{x}", "norm", ("head",), False, Native(f"{native}.ln_{x}")) for x in "qk"
    )
    out = Row(f"{name}.to_out.0", "linear", ("w", "w"), True, Native(f"{native}.proj"))
    return (*rows, out, *(norms if normed else ()))


def _feed_forward(name: str, native: str) -> tuple[Row, ...]:
    return (
        Row(f"{name}.net.0.proj", "linear", ("4w", "w"), True, Native(f"{native}.mlp.fc1")),
        Row(f"{name}.net.2", "linear", ("w", "4w"), True, Native(f"{native}.mlp.fc2")),
    )


def _block(*, last: bool, dual: bool, normed: bool) -> tuple[Row, ...]:
    """The layers of one block; the last one only reads the text, and swaps its modulation."""
    text = "context_block"
    added = tuple(
        Row(f"attn.add_{x}_proj", "linear", ("w", "w"), True, Native(f"{text}.attn.qkv", i, 3))
        for i, x in enumerate("qkv")
    )
    norms = tuple(
        Row(f"attn.norm_added_{x}", "norm", ("head",), False, Native(f"{text}.attn.ln_{x}"))
        for x in "qk"
    )
    rest = (
        Row("attn.to_add_out", "linear", ("w", "w"), True, Native(f"{text}.attn.proj")),
        *_feed_forward("ff_context", text),
    )
    return (
        Row("norm1.linear", "linear", ("9w" if dual else "6w", "w"), True,
            Native("x_block.adaLN_modulation.1")),
        Row("norm1_context.linear", "linear", ("2w" if last else "6w", "w"), True,
            Native(f"{text}.adaLN_modulation.1", swapped=last)),
        *_attention("attn", "x_block.attn", normed=normed),
        *added,
        *(norms if normed else ()),
        *(_attention("attn2", "x_block.attn2", normed=normed) if dual else ()),
        *_feed_forward("ff", "x_block"),
        *(() if last else rest),
    )  # fmt: skip


_TOP = (
    Row("pos_embed.proj", "conv", ("w", 16, 2, 2), True, Native("x_embedder.proj")),
    *(
        row
        for name, native, width in (
            ("timestep_embedder", "t_embedder", 256), ("text_embedder", "y_embedder", 2048),
        )
        for row in (
            Row(f"time_text_embed.{name}.linear_1", "linear", ("w", width), True,
                Native(f"{native}.mlp.0")),
            Row(f"time_text_embed.{name}.linear_2", "linear", ("w", "w"), True,
                Native(f"{native}.mlp.2")),
        )
    ),
    Row("context_embedder", "linear", ("w", 4096), True, Native("context_embedder")),
)  # fmt: skip
_LAST = (
    Row("norm_out.linear", "linear", ("2w", "w"), True,
        Native("final_layer.adaLN_modulation.1", swapped=True)),
    Row("proj_out", "linear", (64, "w"), True, Native("final_layer.linear")),
)  # fmt: skip


def _stacks(blocks: int, dual: int, *, normed: bool) -> tuple[Stack, ...]:
    names = ("transformer_blocks.{}.", "joint_blocks.{}.")
    last = blocks - 1
    return (
        Stack("", "", (0,), _TOP),
        Stack(*names, range(dual), _block(last=False, dual=True, normed=normed)),
        Stack(*names, range(dual, last), _block(last=False, dual=False, normed=normed)),
        Stack(*names, (last,), _block(last=True, dual=False, normed=normed)),
        Stack("", "", (0,), _LAST),
    )


def sd3(
    name: str,
    title: str,
    *,
    width: int,
    blocks: int,
    dual: int = 0,
    normed: bool = True,
    metadata: Metadata,
) -> Family:
    """Make a family of one size.

    Args:
        width, blocks: of the transformer.
        dual: so many of the first blocks have a second attention of the image.
        normed: queries and keys are normalised (3.5).
    """
    stacks = _stacks(blocks, dual, normed=normed)
    sizes = {"w": width, "head": 64, **{f"{n}w": n * width for n in (2, 4, 6, 9)}}

    def build() -> tuple[Component, ...]:
        return (
            Component("transformer", tuple(expand(stacks, sizes))),
            Component("text_encoder", tuple(clip_modules(Clip(768, 12, projection=768)))),
            Component("text_encoder_2", tuple(clip_modules(CLIP_BIG_G))),
            Component("text_encoder_3", tuple(t5_modules(T5()))),
        )

    return Family(
        name=name,
        title=title,
        task="text-to-image",
        gguf="sd3",
        build=build,
        spellings={
            "transformer": transformer_spellings("mmdit", native_slots(stacks)),
            "text_encoder": clip_spellings("text_encoders.clip_l.transformer."),
            "text_encoder_2": clip_spellings("text_encoders.clip_g.transformer."),
            "text_encoder_3": t5_spellings("text_encoders.t5xxl.transformer."),
        },
        metadata=metadata,
        verified="diffusers and transformers models on the meta device, names and shapes",
        classes={
            "transformer": "SD3Transformer2DModel",
            "text_encoder": "CLIPTextModelWithProjection",
            "text_encoder_2": "CLIPTextModelWithProjection",
            "text_encoder_3": "T5EncoderModel",
        },
        prefixes={
            "onetrainer": {
                "transformer": ("lora_transformer_", "transformer."),
                "text_encoder": ("lora_te1_", "clip_l."),
                "text_encoder_2": ("lora_te2_", "clip_g."),
                "text_encoder_3": ("lora_te3_", "t5."),
            }
        },
        heads=heads(stacks),
        marks={"onetrainer": ("transformer.joint_blocks.", "clip_l.", "clip_g.", "t5.")},
        probes=(
            *(f"transformer_blocks.0.attn.to_{x}" for x in "qkv"),
            "transformer_blocks.0.attn.to_out.0",
            "text_model.encoder.layers.0.self_attn.q_proj",
            "encoder.block.0.layer.0.SelfAttention.q",
        ),
        programs={"comfyui": "comfyui"},
        one_alpha=False,
    )
