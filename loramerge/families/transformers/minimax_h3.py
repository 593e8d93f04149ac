"""MiniMax-H3: one stream of video, audio and text after two refining blocks, with diffusers' and its
own names.

The original's queries, keys and values are one tensor, and its feed-forward has the gate first,
which diffusers has last. MiniMax's own shards interleave the fused tensor by heads; the single
files that others publish, and adapters of most trainers, stack it. Only stacked ones are covered:
nothing in a file of weights tells the two apart.

Source of the names: diffusers' `MiniMaxH3Transformer3DModel`, and the original single file as
diffusers' `convert_minimax_h3_transformer_checkpoint_to_diffusers` reads it.
"""

from __future__ import annotations

from loramerge.families.spec import Component, Family, Metadata
from loramerge.families.stacks import (
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

_BLOCK = (
    norm("norm1", "w"),
    *fused(tuple(f"attn.to_{x}" for x in "qkv"), "inner", "w", "attn.qkv_proj", bias=False),
    norm("attn.norm_q", "head", "attn.q_norm"),
    norm("attn.norm_k", "head", "attn.k_norm"),
    linear("attn.to_out.0", "w", "inner", "attn.out_proj", bias=False),
    norm("norm2", "w"),
    linear("ff.net.0.proj", "2hidden", "w", "mlp.fc1", bias=False, swapped=True),
    linear("ff.net.2", "w", "hidden", "mlp.fc2", bias=False),
)
_TOP = (
    linear("proj_in", "w", 96, "video_patch_proj"),
    linear("audio_proj_in", "w", 32, "audio_patch_proj"),
    linear("context_embedder", "w", 5120, "condition_proj"),
    linear("time_embedder.linear_1", "w", 256, "time_embedder.proj_in"),
    linear("time_embedder.linear_2", "time", "w", "time_embedder.proj_out"),
    norm("token_refiner.final_norm", "w"),
    norm("norm_out.norm", "w", "final_layer.norm"),
    linear("norm_out.linear", "2w", "time", "final_layer.adaln_proj.linear"),
    linear("proj_out", 96, "w", "final_layer.video_out"),
    linear("audio_proj_out", 32, "w", "final_layer.audio_out"),
)
_STACKS = (
    Stack("", "", (0,), _TOP),
    Stack("token_refiner.refiner_blocks.{}.", "token_refiner.blocks.{}.", range(2), _BLOCK),
    Stack("transformer_blocks.{}.", "blocks.{}.", range(50),
          (*_BLOCK, linear("adaln_proj.linear", "18w", "time"))),
)  # fmt: skip
_WIDTH = 5376
_SIZES = {
    "w": _WIDTH, "2w": 2 * _WIDTH, "18w": 18 * _WIDTH, "time": _WIDTH // 2, "inner": 7168,
    "hidden": 14336, "2hidden": 2 * 14336, "head": 128,
}  # fmt: skip

FAMILY = Family(
    name="minimax-h3",
    title="MiniMax-H3",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={"transformer": transformer_spellings("original", native_slots(_STACKS))},
    metadata=Metadata(None, None, also=("minimax",)),
    verified="diffusers model on the meta device, names and shapes; its converters of files",
    classes={"transformer": "MiniMaxH3Transformer3DModel"},
    heads=heads(_STACKS),
    probes=(
        *(f"transformer_blocks.0.attn.to_{x}" for x in ("q", "k", "v", "out.0")),
        "transformer_blocks.0.ff.net.0.proj",
    ),
    sign=r"blocks[._]\d+[._](?:attn[._](?:qkv_proj|out_proj|to_)|mlp[._]fc|ff[._]net|adaln_proj)",
    programs={"comfyui": "comfyui"},
    one_alpha=False,
)
