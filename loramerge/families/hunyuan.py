"""The layers that HunyuanVideo and its successors share, with diffusers' and Tencent's names.

`w` is the width, `head` that of a head, `text` that of the text's features. `comfyui_name` gives the
name of the same layer in ComfyUI's network, which is made of Flux.1's parts.
"""

from __future__ import annotations

import re
from functools import cache

from loramerge.families.stacks import Native, Row, fused, linear, norm

__all__ = ["DOUBLE", "LAST", "REFINER", "SINGLE", "comfyui_name", "embedder", "text_embedder"]


def _feed_forward(name: str, native: str) -> tuple[Row, ...]:
    return (
        linear(f"{name}.net.0.proj", "4w", "w", f"{native}.fc1"),
        linear(f"{name}.net.2", "w", "4w", f"{native}.fc2"),
    )


def embedder(name: str, native: tuple[str, str], columns: str | int = 256) -> tuple[Row, ...]:
    """Return the rows of a perceptron that embeds a number or a vector."""
    return (
        linear(f"{name}.linear_1", "w", columns, native[0]),
        linear(f"{name}.linear_2", "w", "w", native[1]),
    )


def text_embedder() -> tuple[Row, ...]:
    """Return the rows of the first embedding of the text."""
    head = "context_embedder.time_text_embed"
    time, text = "txt_in.t_embedder.mlp", "txt_in.c_embedder.linear"
    return (
        *embedder(f"{head}.timestep_embedder", (f"{time}.0", f"{time}.2")),
        *embedder(f"{head}.text_embedder", (f"{text}_1", f"{text}_2"), "text"),
        linear("context_embedder.proj_in", "w", "text", "txt_in.input_embedder"),
    )


REFINER = (
    norm("norm1", "w", bias=True),
    *fused(("attn.to_q", "attn.to_k", "attn.to_v"), "w", "w", "self_attn_qkv"),
    linear("attn.to_out.0", "w", "w", "self_attn_proj"),
    norm("norm2", "w", bias=True),
    *_feed_forward("ff", "mlp"),
    linear("norm_out.linear", "2w", "w", "adaLN_modulation.1"),
)
DOUBLE = (
    linear("norm1.linear", "6w", "w", "img_mod.linear"),
    linear("norm1_context.linear", "6w", "w", "txt_mod.linear"),
    norm("attn.norm_q", "head", "img_attn_q_norm"),
    norm("attn.norm_k", "head", "img_attn_k_norm"),
    *fused(("attn.to_q", "attn.to_k", "attn.to_v"), "w", "w", "img_attn_qkv"),
    *fused(("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "w", "w", "txt_attn_qkv"),
    linear("attn.to_out.0", "w", "w", "img_attn_proj"),
    linear("attn.to_add_out", "w", "w", "txt_attn_proj"),
    norm("attn.norm_added_q", "head", "txt_attn_q_norm"),
    norm("attn.norm_added_k", "head", "txt_attn_k_norm"),
    *_feed_forward("ff", "img_mlp"),
    *_feed_forward("ff_context", "txt_mlp"),
)
# linear1 is queries, keys, values and the feed-forward, which is four times as high
SINGLE = (
    norm("attn.norm_q", "head", "q_norm"),
    norm("attn.norm_k", "head", "k_norm"),
    *(
        Row(f"attn.to_{x}", "linear", ("w", "w"), True, Native("linear1", part, 7))
        for part, x in enumerate("qkv")
    ),
    Row("proj_mlp", "linear", ("4w", "w"), True, Native("linear1", 3, 7, 4)),
    linear("norm.linear", "3w", "w", "modulation.linear"),
    linear("proj_out", "w", "5w", "linear2"),
)
# the original modulates by (shift, scale), diffusers by (scale, shift)
LAST = linear("norm_out.linear", "2w", "w", "final_layer.adaLN_modulation.1", swapped=True)

# pattern of Tencent's names → ComfyUI's
_COMFYUI = (
    (r"_attn_(qkv|proj)$", r"_attn.\1"),
    (r"(?:^|(?<=_attn)_)q_norm$", ".norm.query_norm"),
    (r"(?:^|(?<=_attn)_)k_norm$", ".norm.key_norm"),
    (r"mlp\.fc1$", "mlp.0"),
    (r"mlp\.fc2$", "mlp.2"),
    (r"^((?:img_|txt_)mod|modulation)\.linear$", r"\1.lin"),
    (r"(_in|_embedder)\.mlp\.0$", r"\1.in_layer"),
    (r"(_in|_embedder)\.mlp\.2$", r"\1.out_layer"),
    (r"c_embedder\.linear_1$", "c_embedder.in_layer"),
    (r"c_embedder\.linear_2$", "c_embedder.out_layer"),
)


@cache
def comfyui_name(name: str) -> str:
    """Return ComfyUI's name of a layer by Tencent's."""
    for pattern, word in _COMFYUI:
        name = re.sub(pattern, word, name)
    return name.removeprefix(".")
