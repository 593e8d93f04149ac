"""HunyuanVideo: the video transformer with diffusers' and Tencent's names.

Its blocks resemble those of Flux.1, but there is one more double and two more single ones, and
other words for most layers. The text encoders are not covered.

Source of the names: diffusers' `HunyuanVideoTransformer3DModel` (verified), and the original single
files as diffusers' `convert_hunyuan_video_transformer_to_diffusers` reads them (verified by
conversion).
"""

from __future__ import annotations

from loramerge.families.clip import CLIP_L, clip_modules
from loramerge.families.decoder import DECODER_SIGN, LLAVA_8B, decoder_modules, decoder_spellings
from loramerge.families.encoders import clip_spellings
from loramerge.families.hunyuan import (
    DOUBLE,
    LAST,
    REFINER,
    SINGLE,
    embedder,
    text_embedder,
)
from loramerge.families.spec import Component, Family, Metadata
from loramerge.families.stacks import (
    Native,
    Row,
    Stack,
    expand,
    heads,
    linear,
    native_slots,
    transformer_spellings,
)

__all__ = ["FAMILY"]


_TOP = (
    Row("x_embedder.proj", "conv", ("w", 16, 1, 2, 2), True, Native("img_in.proj")),
    *text_embedder(),
    *embedder("time_text_embed.timestep_embedder", ("time_in.mlp.0", "time_in.mlp.2")),
    *embedder("time_text_embed.text_embedder", ("vector_in.in_layer", "vector_in.out_layer"), 768),
    *embedder("time_text_embed.guidance_embedder", ("guidance_in.mlp.0", "guidance_in.mlp.2")),
)
_LAST = (LAST, linear("proj_out", 64, "w", "final_layer.linear"))
_STACKS = (
    Stack("", "", (0,), _TOP),
    Stack("context_embedder.token_refiner.refiner_blocks.{}.",
          "txt_in.individual_token_refiner.blocks.{}.", range(2), REFINER),
    Stack("transformer_blocks.{}.", "double_blocks.{}.", range(20), DOUBLE),
    Stack("single_transformer_blocks.{}.", "single_blocks.{}.", range(40), SINGLE),
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
    task="text-to-video",
    gguf="hyvid",
    build=lambda: (
        Component("transformer", tuple(expand(_STACKS, _SIZES))),
        Component("text_encoder", tuple(decoder_modules(LLAVA_8B))),
        Component("text_encoder_2", tuple(clip_modules(CLIP_L))),
    ),
    spellings={
        "transformer": transformer_spellings("original", native_slots(_STACKS)),
        "text_encoder": decoder_spellings("text_encoders.llama.transformer."),
        "text_encoder_2": clip_spellings("text_encoders.clip_l.transformer."),
    },
    metadata=Metadata("hunyuan-video", "hunyuan_video", also=("hunyuan",)),
    verified="diffusers and transformers models on the meta device, names and shapes; "
    "diffusers' converters of files",
    classes={
        "transformer": "HunyuanVideoTransformer3DModel",
        "text_encoder": "LlamaModel",
        "text_encoder_2": "CLIPTextModel",
    },
    prefixes={
        "onetrainer": {"transformer": ("lora_transformer_", "transformer.")},
        # without a folder's name it is an adapter of the language model, and of no family
        "peft": {"text_encoder": ("text_encoder/base_model.model.",)},
    },
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
        "text_model.encoder.layers.0.self_attn.q_proj",
    ),
    sign=f"{_SIGN}|{DECODER_SIGN}",
    twins=("FramePack", "Motif-Video"),
    one_alpha=False,
    programs={"comfyui": "comfyui"},
)
