"""Qwen-Image: one transformer, whose original names are diffusers' own, and Qwen2.5-VL.

Source of the names: diffusers' `QwenImageTransformer2DModel` and transformers'
`Qwen2_5_VLForConditionalGeneration` (verified).
"""

from __future__ import annotations

from collections.abc import Iterator

from loramerge.families.qwen_vl import qwen_vl_modules, qwen_vl_spellings
from loramerge.families.spec import Component, Family, Layer, Module, plain_slot
from loramerge.families.stacks import transformer_spellings

__all__ = ["QWEN_IMAGE", "qwen_modules"]

_BLOCK: tuple[tuple[str, Layer, tuple[int, ...], bool], ...] = (
    ("img_mod.1", "linear", (6, 1), True),
    ("attn.norm_q", "norm", (), False),
    ("attn.norm_k", "norm", (), False),
    *((f"attn.{name}", "linear", (1, 1), True)
      for name in ("to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "add_q_proj", "to_out.0",
                   "to_add_out")),
    ("attn.norm_added_q", "norm", (), False),
    ("attn.norm_added_k", "norm", (), False),
    ("img_mlp.net.0.proj", "linear", (4, 1), True),
    ("img_mlp.net.2", "linear", (1, 4), True),
    ("txt_mod.1", "linear", (6, 1), True),
    ("txt_mlp.net.0.proj", "linear", (4, 1), True),
    ("txt_mlp.net.2", "linear", (1, 4), True),
)  # fmt: skip


def qwen_modules(width: int = 3072, blocks: int = 60, context: int = 3584) -> Iterator[Module]:
    """Yield every layer with its path and full-width shape."""
    w = width
    embedder = "time_text_embed.timestep_embedder"
    yield Module(f"{embedder}.linear_1", "linear", (w, 256), True)
    yield Module(f"{embedder}.linear_2", "linear", (w, w), True)
    yield Module("txt_norm", "norm", (context,), False)
    yield Module("img_in", "linear", (w, 64), True)
    yield Module("txt_in", "linear", (w, context), True)
    for i in range(blocks):
        for name, layer, dims, bias in _BLOCK:
            shape = tuple(d * w for d in dims) if dims else (128,)
            yield Module(f"transformer_blocks.{i}.{name}", layer, shape, bias)
    yield Module("norm_out.linear", "linear", (2 * w, w), True)
    yield Module("proj_out", "linear", (64, w), True)


QWEN_IMAGE = Family(
    name="qwen-image",
    title="Qwen-Image",
    build=lambda: (
        Component("transformer", tuple(qwen_modules())),
        Component("text_encoder", tuple(qwen_vl_modules())),
    ),
    spellings={
        "transformer": transformer_spellings("original", plain_slot),
        "text_encoder": qwen_vl_spellings("text_encoders.qwen25_7b.transformer."),
    },
    metadata=("qwen", "Qwen"),
    verified="diffusers and transformers models on the meta device, names and shapes",
    probes=(
        *(f"transformer_blocks.0.attn.to_{x}" for x in ("q", "k", "v", "out.0")),
        "transformer_blocks.0.img_mlp.net.2",
        "model.language_model.layers.0.self_attn.q_proj",
    ),
    never=r"single_(?:transformer_)?blocks|norm1|\.ff|_ff_",
    alone_in="bare",  # the Lightning adapters
    one_alpha=False,
    programs={"comfyui": "comfyui"},
)
