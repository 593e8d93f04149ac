"""HunyuanVideo: the video transformer with diffusers' and Tencent's names.

Its blocks resemble those of Flux.1, but there is one more double and two more single ones, and
other words for most layers. The text encoders are not covered.

Source of the names: diffusers' `HunyuanVideoTransformer3DModel` (verified), and the original single
files as diffusers' `convert_hunyuan_video_transformer_to_diffusers` reads them (verified by
conversion).
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


def _linear(
    name: str, rows: str | int, columns: str | int, native: str, *, swapped: bool = False
) -> Row:
    return Row(name, "linear", (rows, columns), True, Native(native, swapped=swapped))


def _qkv(fused: str, *names: str) -> tuple[Row, ...]:
    """Queries, keys and values: equal thirds of one tensor, in this order."""
    return tuple(
        Row(name, "linear", ("w", "w"), True, Native(fused, part, 3))
        for part, name in enumerate(names)
    )


def _norm(name: str, native: str) -> Row:
    return Row(name, "norm", ("head",), False, Native(native))


def _feed_forward(name: str, native: str) -> tuple[Row, ...]:
    return (
        _linear(f"{name}.net.0.proj", "4w", "w", f"{native}.fc1"),
        _linear(f"{name}.net.2", "w", "4w", f"{native}.fc2"),
    )


def _embedder(name: str, native: tuple[str, str], columns: str | int) -> tuple[Row, ...]:
    return (
        _linear(f"{name}.linear_1", "w", columns, native[0]),
        _linear(f"{name}.linear_2", "w", "w", native[1]),
    )


_TOP = (
    Row("x_embedder.proj", "conv", ("w", 16, 1, 2, 2), True, Native("img_in.proj")),
    *_embedder("context_embedder.time_text_embed.timestep_embedder",
               ("txt_in.t_embedder.mlp.0", "txt_in.t_embedder.mlp.2"), 256),
    *_embedder("context_embedder.time_text_embed.text_embedder",
               ("txt_in.c_embedder.linear_1", "txt_in.c_embedder.linear_2"), "text"),
    _linear("context_embedder.proj_in", "w", "text", "txt_in.input_embedder"),
    *_embedder("time_text_embed.timestep_embedder", ("time_in.mlp.0", "time_in.mlp.2"), 256),
    *_embedder("time_text_embed.text_embedder", ("vector_in.in_layer", "vector_in.out_layer"), 768),
    *_embedder("time_text_embed.guidance_embedder", ("guidance_in.mlp.0", "guidance_in.mlp.2"), 256),
)  # fmt: skip
_REFINER = (
    Row("norm1", "norm", ("w",), True, Native("norm1")),
    *_qkv("self_attn_qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    _linear("attn.to_out.0", "w", "w", "self_attn_proj"),
    Row("norm2", "norm", ("w",), True, Native("norm2")),
    *_feed_forward("ff", "mlp"),
    _linear("norm_out.linear", "2w", "w", "adaLN_modulation.1"),
)
_DOUBLE = (
    _linear("norm1.linear", "6w", "w", "img_mod.linear"),
    _linear("norm1_context.linear", "6w", "w", "txt_mod.linear"),
    _norm("attn.norm_q", "img_attn_q_norm"),
    _norm("attn.norm_k", "img_attn_k_norm"),
    *_qkv("img_attn_qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    *_qkv("txt_attn_qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    _linear("attn.to_out.0", "w", "w", "img_attn_proj"),
    _linear("attn.to_add_out", "w", "w", "txt_attn_proj"),
    _norm("attn.norm_added_q", "txt_attn_q_norm"),
    _norm("attn.norm_added_k", "txt_attn_k_norm"),
    *_feed_forward("ff", "img_mlp"),
    *_feed_forward("ff_context", "txt_mlp"),
)
# linear1 is queries, keys, values and the feed-forward, which is four times as high
_SINGLE = (
    _norm("attn.norm_q", "q_norm"),
    _norm("attn.norm_k", "k_norm"),
    Row("attn.to_q", "linear", ("w", "w"), True, Native("linear1", 0, 7)),
    Row("attn.to_k", "linear", ("w", "w"), True, Native("linear1", 1, 7)),
    Row("attn.to_v", "linear", ("w", "w"), True, Native("linear1", 2, 7)),
    Row("proj_mlp", "linear", ("4w", "w"), True, Native("linear1", 3, 7, 4)),
    _linear("norm.linear", "3w", "w", "modulation.linear"),
    _linear("proj_out", "w", "5w", "linear2"),
)
# the original modulates by (shift, scale), diffusers by (scale, shift)
_LAST = (
    _linear("norm_out.linear", "2w", "w", "final_layer.adaLN_modulation.1", swapped=True),
    _linear("proj_out", 64, "w", "final_layer.linear"),
)
_STACKS = (
    Stack("", "", (0,), _TOP),
    Stack("context_embedder.token_refiner.refiner_blocks.{}.",
          "txt_in.individual_token_refiner.blocks.{}.", range(2), _REFINER),
    Stack("transformer_blocks.{}.", "double_blocks.{}.", range(20), _DOUBLE),
    Stack("single_transformer_blocks.{}.", "single_blocks.{}.", range(40), _SINGLE),
    Stack("", "", (0,), _LAST),
)  # fmt: skip
_WIDTH = 3072
_SIZES = {
    **{f"{n}w": n * _WIDTH for n in (2, 3, 4, 5, 6)}, "w": _WIDTH, "head": 128, "text": 4096,
}  # fmt: skip
# the blocks that Flux.1 lacks, and the words that it has not: without any, a file is one of Flux.1
_SIGN = (
    r"double_blocks[._]19[._]|single_(?:transformer_)?blocks[._]3[89][._]"
    r"|(?<!single_)(?<!\d[._])transformer_blocks[._]19[._]attn[._]"
    r"|\.(?:img|txt)_attn_(?:qkv|proj)|_mod[._]linear|modulation[._]linear|(?:img|txt)_mlp[._]fc\d"
    r"|token_refiner"
)

FAMILY = Family(
    name="hunyuan-video",
    title="HunyuanVideo",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={"transformer": transformer_spellings("original", native_slots(_STACKS))},
    metadata=Metadata("hunyuan-video", "hunyuan_video", also=("hunyuan",)),
    verified="diffusers model on the meta device, names and shapes; its converters of files",
    classes={"transformer": "HunyuanVideoTransformer3DModel"},
    prefixes={"onetrainer": {"transformer": ("lora_transformer_", "transformer.")}},
    # ComfyUI's own network, made of Flux.1's parts, has other names for what embeds
    renamed={
        "comfyui": {
            "time_in.mlp.0": "time_in.in_layer",
            "time_in.mlp.2": "time_in.out_layer",
            "guidance_in.mlp.0": "guidance_in.in_layer",
            "guidance_in.mlp.2": "guidance_in.out_layer",
            "txt_in.t_embedder.mlp.0": "txt_in.t_embedder.in_layer",
            "txt_in.t_embedder.mlp.2": "txt_in.t_embedder.out_layer",
            "txt_in.c_embedder.linear_1": "txt_in.c_embedder.in_layer",
            "txt_in.c_embedder.linear_2": "txt_in.c_embedder.out_layer",
        }
    },
    heads=heads(_STACKS),
    marks={
        "onetrainer": tuple(
            f"transformer.{name}"
            for name in (
                "double_blocks.",
                "single_blocks.",
                "time_in.",
                "vector_in.",
                "guidance_in.",
                "img_in.proj",
                "txt_in.input_embedder",
                "txt_in.t_embedder.",
                "txt_in.c_embedder.",
                "txt_in.individual_token_refiner.",
            )
        )
    },
    probes=(
        *(f"transformer_blocks.0.attn.to_{x}" for x in ("q", "k", "v", "out.0")),
        *(f"single_transformer_blocks.0.attn.to_{x}" for x in ("q", "k", "v")),
        "single_transformer_blocks.0.proj_mlp",
        "single_transformer_blocks.0.proj_out",
    ),
    sign=_SIGN,
    twins=("FramePack", "Motif-Video"),
    one_alpha=False,
    programs={"comfyui": "comfyui"},
)
