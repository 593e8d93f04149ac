"""Lumina Image 2.0 and the networks after its pattern: one stream of image and text, behind refiners.

Keys and values have a third as many heads as queries: of five equal parts of the original `qkv`, three
are queries.

Source of the names: diffusers' `Lumina2Transformer2DModel` (verified), and the original single files as
diffusers' `convert_lumina2_to_diffusers` reads them (verified by conversion).
"""

from __future__ import annotations

from collections.abc import Mapping

from loramerge.families.stacks import Native, Row, Stack, linear, norm

__all__ = ["MODULATED", "lumina_sizes", "lumina_stacks"]

_ATTENTION = (
    norm("attn.norm_q", "head", "attention.q_norm"),
    norm("attn.norm_k", "head", "attention.k_norm"),
    Row("attn.to_q", "linear", ("w", "w"), False, Native("attention.qkv", 0, 5, 3)),
    Row("attn.to_k", "linear", ("keys", "w"), False, Native("attention.qkv", 3, 5)),
    Row("attn.to_v", "linear", ("keys", "w"), False, Native("attention.qkv", 4, 5)),
    linear("attn.to_out.0", "w", "w", "attention.out", bias=False),
)
_REST = (
    linear("feed_forward.linear_1", "hidden", "w", "feed_forward.w1", bias=False),
    linear("feed_forward.linear_2", "w", "hidden", "feed_forward.w2", bias=False),
    linear("feed_forward.linear_3", "hidden", "w", "feed_forward.w3", bias=False),
    norm("ffn_norm1", "w"),
    norm("norm2", "w", "attention_norm2"),
    norm("ffn_norm2", "w"),
)
MODULATED = (
    *_ATTENTION,
    linear("norm1.linear", "4w", "time", "adaLN_modulation.1"),
    norm("norm1.norm", "w", "attention_norm1"),
    *_REST,
)
_PLAIN = (*_ATTENTION, norm("norm1", "w", "attention_norm1"), *_REST)
_TIME = "time_caption_embed.timestep_embedder"
_TOP = (
    linear("x_embedder", "w", 64),
    linear(f"{_TIME}.linear_1", "time", 256, "t_embedder.mlp.0"),
    linear(f"{_TIME}.linear_2", "time", "time", "t_embedder.mlp.2"),
    norm("time_caption_embed.caption_embedder.0", "text", "cap_embedder.0"),
    linear("time_caption_embed.caption_embedder.1", "w", "text", "cap_embedder.1"),
    linear("norm_out.linear_1", "w", "time", "final_layer.adaLN_modulation.1"),
    linear("norm_out.linear_2", 64, "w", "final_layer.linear"),
)


def lumina_stacks(layers: int) -> tuple[Stack, ...]:
    """Return the layers of a network with that many blocks behind its refiners."""
    return (
        Stack("", "", (0,), _TOP),
        Stack("noise_refiner.{}.", "noise_refiner.{}.", range(2), MODULATED),
        Stack("context_refiner.{}.", "context_refiner.{}.", range(2), _PLAIN),
        Stack("layers.{}.", "layers.{}.", range(layers), MODULATED),
    )


def lumina_sizes(*, width: int, head: int, hidden: int, text: int) -> Mapping[str, int]:
    """Return the sizes of a network by the names that its rows have for them.

    Args:
        width: hidden size.
        head: width of an attention head.
        hidden: width of the feed-forward.
        text: width of the text encoder's output.
    """
    return {
        "w": width, "4w": 4 * width, "keys": width // 3, "head": head, "hidden": hidden,
        "time": 1024, "text": text,
    }  # fmt: skip
