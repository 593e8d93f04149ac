"""HunyuanImage 2.1: double and single blocks, with diffusers', Tencent's and ComfyUI's names.

The text encoders are not covered, nor is the refiner.

Source of the names: diffusers' `HunyuanImageTransformer2DModel`; of the original ones sd-scripts'
`hunyuan_image_models.py`, and ComfyUI's network.
"""

from __future__ import annotations

from loramerge.families.hunyuan import (
    DOUBLE,
    LAST,
    REFINER,
    SINGLE,
    comfyui_name,
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
    norm,
    transformer_spellings,
)

__all__ = ["FAMILY"]

_TIME = "time_guidance_embed"
_TOP = (
    Row("x_embedder.proj", "conv", ("w", 64, 1, 1), True, Native("img_in.proj")),
    *text_embedder(),
    norm("context_embedder_2.norm", 1472, "byt5_in.layernorm", bias=True),
    linear("context_embedder_2.linear_1", 2048, 1472, "byt5_in.fc1"),
    linear("context_embedder_2.linear_2", 2048, 2048, "byt5_in.fc2"),
    linear("context_embedder_2.linear_3", "w", 2048, "byt5_in.fc3"),
    *(
        row
        for name, native in (
            ("timestep_embedder", "time_in"),
            ("timestep_embedder_r", "time_r_in"),
            ("guidance_embedder", "guidance_in"),
        )
        for row in embedder(f"{_TIME}.{name}", (f"{native}.mlp.0", f"{native}.mlp.2"))
    ),
    LAST,
    linear("proj_out", 64, "w", "final_layer.linear"),
)
_STACKS = (
    Stack("", "", (0,), _TOP),
    Stack("context_embedder.token_refiner.refiner_blocks.{}.",
          "txt_in.individual_token_refiner.blocks.{}.", range(2), REFINER),
    Stack("transformer_blocks.{}.", "double_blocks.{}.", range(20), DOUBLE),
    Stack("single_transformer_blocks.{}.", "single_blocks.{}.", range(40), SINGLE),
)  # fmt: skip
_WIDTH = 3584
_SIZES = {
    "w": _WIDTH, **{f"{n}w": n * _WIDTH for n in (2, 3, 4, 5, 6)}, "head": 128, "text": 3584,
}  # fmt: skip

FAMILY = Family(
    name="hunyuan-image",
    title="HunyuanImage 2.1",
    task="text-to-image",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={
        "transformer": (
            *transformer_spellings("comfyui", native_slots(_STACKS, comfyui_name)),
            *transformer_spellings("original", native_slots(_STACKS))[:3],
        )
    },
    metadata=Metadata(
        "hunyuan-image-2.1",
        "hunyuan-image-2.1",
        "networks.lora_hunyuan_image",
        also=("hunyuan-image", "hunyuan_image"),
    ),
    verified="diffusers model on the meta device, names and shapes",
    classes={"transformer": "HunyuanImageTransformer2DModel"},
    heads=heads(_STACKS),
    probes=(
        *(f"transformer_blocks.0.attn.to_{x}" for x in ("q", "k", "v", "out.0")),
        *(f"single_transformer_blocks.0.attn.to_{x}" for x in "qkv"),
        "single_transformer_blocks.0.proj_mlp",
        "single_transformer_blocks.0.proj_out",
    ),
    sign=r"(?:double|single)_blocks[._]|(?<!\d[._])transformer_blocks[._]|token_refiner",
    shapes_only=True,  # the names are those of Flux.1 and HunyuanVideo
    one_alpha=False,
    programs={"comfyui": "comfyui"},
)
