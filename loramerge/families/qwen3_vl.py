"""Qwen3-VL 8B, a vision and language model, with transformers' names.

Source of the names and sizes: transformers' `Qwen3VLForConditionalGeneration` with the configuration of
the published 8B model (verified).
"""

from __future__ import annotations

from loramerge.families.stacks import Row, Stack, linear, norm, same

__all__ = ["QWEN3_VL_SIZES", "QWEN3_VL_STACKS"]

_VISUAL, _LANGUAGE = "model.visual.", "model.language_model."
_VISION_TOP = (
    same(f"{_VISUAL}patch_embed.proj", "conv", ("vision", 3, 2, 16, 16), bias=True),
    same(f"{_VISUAL}pos_embed", "embedding", (2304, "vision")),
)
_VISION_BLOCK = (
    norm("norm1", "vision", bias=True),
    norm("norm2", "vision", bias=True),
    linear("attn.qkv", "3vision", "vision"),
    linear("attn.proj", "vision", "vision"),
    linear("mlp.linear_fc1", "vision_hidden", "vision"),
    linear("mlp.linear_fc2", "vision", "vision_hidden"),
)


def _merger(width: str) -> tuple[Row, ...]:
    """Return what makes one token of four patches, with a norm before or after they are joined."""
    return (
        norm("norm", width, bias=True),
        linear("linear_fc1", "4vision", "4vision"),
        linear("linear_fc2", "w", "4vision"),
    )


_LAYER = (
    linear("self_attn.q_proj", "w", "w", bias=False),
    linear("self_attn.k_proj", "keys", "w", bias=False),
    linear("self_attn.v_proj", "keys", "w", bias=False),
    linear("self_attn.o_proj", "w", "w", bias=False),
    norm("self_attn.q_norm", "head"),
    norm("self_attn.k_norm", "head"),
    linear("mlp.gate_proj", "hidden", "w", bias=False),
    linear("mlp.up_proj", "hidden", "w", bias=False),
    linear("mlp.down_proj", "w", "hidden", bias=False),
    norm("input_layernorm", "w"),
    norm("post_attention_layernorm", "w"),
)
_LANGUAGE_TOP = (
    same(f"{_LANGUAGE}embed_tokens", "embedding", ("vocabulary", "w")),
    norm(f"{_LANGUAGE}norm", "w"),
    linear("lm_head", "vocabulary", "w", bias=False),
)


def _repeated(name: str, count: int, rows: tuple[Row, ...]) -> Stack:
    return Stack(f"{name}.{{}}.", f"{name}.{{}}.", range(count), rows)


QWEN3_VL_STACKS = (
    Stack("", "", (0,), _VISION_TOP),
    _repeated(f"{_VISUAL}blocks", 27, _VISION_BLOCK),
    Stack(f"{_VISUAL}merger.", f"{_VISUAL}merger.", (0,), _merger("vision")),
    _repeated(f"{_VISUAL}deepstack_merger_list", 3, _merger("4vision")),
    _repeated(f"{_LANGUAGE}layers", 36, _LAYER),
    Stack("", "", (0,), _LANGUAGE_TOP),
)
QWEN3_VL_SIZES = {
    "w": 4096, "keys": 8 * 128, "head": 128, "hidden": 12288, "vocabulary": 151936,
    "vision": 1152, "3vision": 3 * 1152, "4vision": 4 * 1152, "vision_hidden": 4304,
}  # fmt: skip
