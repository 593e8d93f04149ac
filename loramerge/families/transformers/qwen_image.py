"""Qwen-Image: one transformer, whose original names are diffusers' own, and Qwen2.5-VL.

Source of the names: diffusers' `QwenImageTransformer2DModel` and transformers'
`Qwen2_5_VLForConditionalGeneration` (verified).
"""

from __future__ import annotations

from loramerge.families.qwen_vl import qwen_vl_modules, qwen_vl_spellings
from loramerge.families.spec import Component, Family, Metadata
from loramerge.families.stacks import (
    Stack,
    expand,
    heads,
    native_slots,
    same,
    transformer_spellings,
)

__all__ = ["FAMILY"]

_EMBEDDER = "time_text_embed.timestep_embedder"
_TOP = (
    same(f"{_EMBEDDER}.linear_1", "linear", ("w", 256), bias=True),
    same(f"{_EMBEDDER}.linear_2", "linear", ("w", "w"), bias=True),
    same("txt_norm", "norm", ("context",)),
    same("img_in", "linear", ("w", 64), bias=True),
    same("txt_in", "linear", ("w", "context"), bias=True),
)
_BLOCK = (
    same("img_mod.1", "linear", ("6w", "w"), bias=True),
    same("attn.norm_q", "norm", ("head",)),
    same("attn.norm_k", "norm", ("head",)),
    *(
        same(f"attn.{name}", "linear", ("w", "w"), bias=True)
        for name in ("to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "add_q_proj", "to_out.0",
                     "to_add_out")
    ),
    same("attn.norm_added_q", "norm", ("head",)),
    same("attn.norm_added_k", "norm", ("head",)),
    same("img_mlp.net.0.proj", "linear", ("4w", "w"), bias=True),
    same("img_mlp.net.2", "linear", ("w", "4w"), bias=True),
    same("txt_mod.1", "linear", ("6w", "w"), bias=True),
    same("txt_mlp.net.0.proj", "linear", ("4w", "w"), bias=True),
    same("txt_mlp.net.2", "linear", ("w", "4w"), bias=True),
)  # fmt: skip
_LAST = (
    same("norm_out.linear", "linear", ("2w", "w"), bias=True),
    same("proj_out", "linear", (64, "w"), bias=True),
)
_BLOCKS = "transformer_blocks.{}."
_STACKS = (
    Stack("", "", (0,), _TOP),
    Stack(_BLOCKS, _BLOCKS, range(60), _BLOCK),
    Stack("", "", (0,), _LAST),
)
_WIDTH = 3072
_SIZES = {
    "w": _WIDTH, **{f"{n}w": n * _WIDTH for n in (2, 4, 6)}, "head": 128, "context": 3584,
}  # fmt: skip

FAMILY = Family(
    name="qwen-image",
    title="Qwen-Image",
    task="text-to-image",
    gguf="qwen_image",
    build=lambda: (
        Component("transformer", tuple(expand(_STACKS, _SIZES))),
        Component("text_encoder", tuple(qwen_vl_modules())),
    ),
    spellings={
        "transformer": transformer_spellings("original", native_slots(_STACKS)),
        "text_encoder": qwen_vl_spellings("text_encoders.qwen25_7b.transformer."),
    },
    metadata=Metadata("Qwen-Image", "qwen_image", "networks.lora_qwen_image", also=("qwen",)),
    verified="diffusers and transformers models on the meta device, names and shapes",
    classes={
        "transformer": "QwenImageTransformer2DModel",
        "text_encoder": "Qwen2_5_VLForConditionalGeneration",
    },
    prefixes={
        "kohya": {"text_encoder": ("lora_te_",)},  # OneTrainer's
        # without a folder's name it is an adapter of the language model, and of no family
        "peft": {"text_encoder": ("text_encoder/base_model.model.",)},
    },
    heads=heads(_STACKS),
    probes=(
        *(f"transformer_blocks.0.attn.to_{x}" for x in ("q", "k", "v", "out.0")),
        "transformer_blocks.0.img_mlp.net.2",
        "model.language_model.layers.0.self_attn.q_proj",
    ),
    programs={"comfyui": "comfyui"},
    one_alpha=False,
    unreached={
        f"transformer.transformer_blocks.59.{layer}": "nothing reads the text of the last block"
        for layer in ("attn.add_q_proj", "attn.to_add_out", "txt_mlp.*")
    },
)
