"""Mochi 1: joint blocks of video and text, of two widths, with diffusers' and its own names.

Source of the names: diffusers' `MochiTransformer3DModel`, and the original single file as
diffusers' `convert_mochi_transformer_checkpoint_to_diffusers` reads it. The last block does not
change the text.
"""

from __future__ import annotations

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

__all__ = ["FAMILY"]


def _linear(name: str, rows: str | int, columns: str | int, native: str, bias: bool = False) -> Row:
    return Row(name, "linear", (rows, columns), bias, Native(native))


def _inputs(names: tuple[str, str, str], norms: str, columns: str, stream: str) -> tuple[Row, ...]:
    """Return q, k and v of one stream, which are one tensor in the original, and their norms."""
    fused = f"attn.qkv_{stream}"
    return (
        *(
            Row(f"attn1.{name}", "linear", ("w", columns), False, Native(fused, part, 3))
            for part, name in enumerate(names)
        ),
        *(
            Row(
                f"attn1.{norms}{one}", "norm", ("head",), False, Native(f"attn.{one}_norm_{stream}")
            )
            for one in "qk"
        ),
    )


def _feed_forward(name: str, width: str, hidden: str, native: str) -> tuple[Row, ...]:
    gated = Native(f"{native}.w1", swapped=True)
    return (
        Row(f"{name}.net.0.proj", "linear", (f"2{hidden}", width), False, gated),
        _linear(f"{name}.net.2", width, hidden, f"{native}.w2"),
    )


_BOTH = (
    _linear("norm1.linear", "4w", "w", "mod_x", bias=True),
    *_inputs(("to_q", "to_k", "to_v"), "norm_", "w", "x"),
    *_inputs(("add_q_proj", "add_k_proj", "add_v_proj"), "norm_added_", "text", "y"),
    _linear("attn1.to_out.0", "w", "w", "attn.proj_x", bias=True),
    *_feed_forward("ff", "w", "hidden", "mlp_x"),
)
_TEXT = (
    _linear("norm1_context.linear", "4text", "w", "mod_y", bias=True),
    _linear("attn1.to_add_out", "text", "w", "attn.proj_y", bias=True),
    *_feed_forward("ff_context", "text", "text_hidden", "mlp_y"),
)
_LAST = (_linear("norm1_context.linear_1", "text", "w", "mod_y", bias=True),)
_TOP = (
    Row("pos_frequencies", "matrix", (3, 24, 64), False, Native("pos_frequencies", weight="")),
    Row("patch_embed.proj", "conv", ("w", 12, 2, 2), True, Native("x_embedder.proj")),
    _linear("time_embed.timestep_embedder.linear_1", "w", 256, "t_embedder.mlp.0", bias=True),
    _linear("time_embed.timestep_embedder.linear_2", "w", "w", "t_embedder.mlp.2", bias=True),
    _linear("time_embed.pooler.to_kv", 8192, 4096, "t5_y_embedder.to_kv", bias=True),
    _linear("time_embed.pooler.to_q", 4096, 4096, "t5_y_embedder.to_q", bias=True),
    _linear("time_embed.pooler.to_out", "w", 4096, "t5_y_embedder.to_out", bias=True),
    _linear("time_embed.caption_proj", "text", 4096, "t5_yproj", bias=True),
    Row("norm_out.linear", "linear", ("2w", "w"), True, Native("final_layer.mod", swapped=True)),
    _linear("proj_out", 48, "w", "final_layer.linear", bias=True),
)
_NAMES = ("transformer_blocks.{}.", "blocks.{}.")
_STACKS = (
    Stack("", "", (0,), _TOP),
    Stack(*_NAMES, range(47), (*_BOTH, *_TEXT)),
    Stack(*_NAMES, (47,), (*_BOTH, *_LAST)),
)
_WIDTH, _TEXT_WIDTH = 3072, 1536
_SIZES = {
    "w": _WIDTH,
    "2w": 2 * _WIDTH,
    "4w": 4 * _WIDTH,
    "hidden": 8192,
    "2hidden": 2 * 8192,
    "text": _TEXT_WIDTH,
    "4text": 4 * _TEXT_WIDTH,
    "text_hidden": 4096,
    "2text_hidden": 2 * 4096,
    "head": 128,
}

FAMILY = Family(
    name="mochi",
    title="Mochi 1",
    task="text-to-video",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={"transformer": transformer_spellings("original", native_slots(_STACKS))},
    metadata=Metadata(None, None),
    verified="diffusers model on the meta device, names and shapes; its converters of files",
    classes={"transformer": "MochiTransformer3DModel"},
    heads=heads(_STACKS),
    sign=r"blocks[._]\d",
    probes=tuple(f"transformer_blocks.0.attn1.to_{one}" for one in "qkv"),
    common_dialect="diffusers",
    programs={"comfyui": "comfyui"},
    one_alpha=False,
)
