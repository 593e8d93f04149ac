"""Z-Image: one stream of image and text, after two refiners, with diffusers' and ComfyUI's names.

The published names are diffusers' own; ComfyUI's single files store them as those of Lumina2, with
queries, keys and values fused. Padding tokens are not layers and are left alone; so is the text
encoder, a language model.

Source of the names: diffusers' `ZImageTransformer2DModel` (verified), and the single files as
diffusers' `convert_z_image_transformer_checkpoint_to_diffusers` reads them (verified by
conversion).
"""

from __future__ import annotations

from loramerge.families.spec import Component, Family, Metadata, Spelling, plain_slot
from loramerge.families.stacks import (
    Native,
    Row,
    Stack,
    expand,
    heads,
    native_slots,
    same,
    transformer_spellings,
)

__all__ = ["FAMILY"]


_BLOCK = (
    Row("attention.norm_q", "norm", ("head",), False, Native("attention.q_norm")),
    Row("attention.norm_k", "norm", ("head",), False, Native("attention.k_norm")),
    *(
        Row(f"attention.to_{x}", "linear", ("w", "w"), False, Native("attention.qkv", part, 3))
        for part, x in enumerate("qkv")
    ),
    Row("attention.to_out.0", "linear", ("w", "w"), False, Native("attention.out")),
    same("feed_forward.w1", "linear", ("hidden", "w")),
    same("feed_forward.w2", "linear", ("w", "hidden")),
    same("feed_forward.w3", "linear", ("hidden", "w")),
    *(
        same(name, "norm", ("w",))
        for name in ("attention_norm1", "ffn_norm1", "attention_norm2", "ffn_norm2")
    ),
)
_MODULATED = (*_BLOCK, same("adaLN_modulation.0", "linear", ("4w", "time"), bias=True))
_TOP = (
    Row("all_x_embedder.2-1", "linear", ("w", 64), True, Native("x_embedder")),
    Row("all_final_layer.2-1.linear", "linear", (64, "w"), True, Native("final_layer.linear")),
    Row("all_final_layer.2-1.adaLN_modulation.1", "linear", ("w", "time"), True,
        Native("final_layer.adaLN_modulation.1")),
    same("t_embedder.mlp.0", "linear", (1024, 256), bias=True),
    same("t_embedder.mlp.2", "linear", ("time", 1024), bias=True),
    same("cap_embedder.0", "norm", ("text",)),
    same("cap_embedder.1", "linear", ("w", "text"), bias=True),
)  # fmt: skip
_STACKS = (
    Stack("", "", (0,), _TOP),
    Stack("noise_refiner.{}.", "noise_refiner.{}.", range(2), _MODULATED),
    Stack("context_refiner.{}.", "context_refiner.{}.", range(2), _BLOCK),
    Stack("layers.{}.", "layers.{}.", range(30), _MODULATED),
)
_WIDTH = 3840
_SIZES = {
    "w": _WIDTH, "4w": 4 * _WIDTH, "hidden": 10240, "head": 128, "time": 256, "text": 2560,
}  # fmt: skip

FAMILY = Family(
    name="z-image",
    title="Z-Image and Z-Image Turbo",
    task="text-to-image",
    gguf="lumina2",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={
        "transformer": (
            Spelling("original", "", plain_slot),
            *transformer_spellings("comfyui", native_slots(_STACKS)),
        )
    },
    metadata=Metadata("Z-Image", "z_image", "networks.lora_zimage", also=("zimage",)),
    verified="diffusers model on the meta device, names and shapes; its converters of files",
    classes={"transformer": "ZImageTransformer2DModel"},
    heads=heads(_STACKS),
    probes=(
        *(f"layers.0.attention.to_{x}" for x in ("q", "k", "v", "out.0")),
        "layers.0.feed_forward.w1",
        "layers.0.adaLN_modulation.0",
    ),
    sign=r"(?:layers|_refiner)[._]\d+[._](?:attention|feed_forward|adaLN|ffn)|cap_embedder",
    one_alpha=False,
    programs={"comfyui": "comfyui", "invokeai": "comfyui"},
)
