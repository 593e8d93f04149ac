"""HunyuanVideo 1.5: double blocks alone, with diffusers', Tencent's and ComfyUI's names.

Tencent's network, which musubi-tuner trains, has queries, keys and values apart, as diffusers has;
ComfyUI's fuses them. The text encoders are not covered.

Source of the names: diffusers' `HunyuanVideo15Transformer3DModel`; of the original ones musubi-tuner's
`hunyuan_video_1_5_models.py` and its conversion for ComfyUI, and ComfyUI's network.
"""

from __future__ import annotations

from loramerge.families.hunyuan import (
    DOUBLE,
    LAST,
    REFINER,
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

# Tencent's names of the layers that ComfyUI fuses
_APART = {
    f"attn.{name}": f"{stream}_attn_{x}"
    for stream, names in (("img", "to_{}"), ("txt", "add_{}_proj"))
    for x in "qkv"
    for name in (names.format(x),)
}
_TOP = (
    Row("x_embedder.proj", "conv", ("w", 65, 1, 1, 1), True, Native("img_in.proj")),
    norm("image_embedder.norm_in", "image", "vision_in.proj.0", bias=True),
    linear("image_embedder.linear_1", "image", "image", "vision_in.proj.1"),
    linear("image_embedder.linear_2", "w", "image", "vision_in.proj.3"),
    norm("image_embedder.norm_out", "w", "vision_in.proj.4", bias=True),
    *text_embedder(),
    norm("context_embedder_2.norm", 1472, "byt5_in.layernorm", bias=True),
    linear("context_embedder_2.linear_1", 2048, 1472, "byt5_in.fc1"),
    linear("context_embedder_2.linear_2", 2048, 2048, "byt5_in.fc2"),
    linear("context_embedder_2.linear_3", "w", 2048, "byt5_in.fc3"),
    *embedder("time_embed.timestep_embedder", ("time_in.mlp.0", "time_in.mlp.2")),
    *embedder("time_embed.timestep_embedder_r", ("time_r_in.mlp.0", "time_r_in.mlp.2")),
    Row("cond_type_embed", "embedding", (3, "w"), False, Native("cond_type_embedding")),
    LAST,
    linear("proj_out", 32, "w", "final_layer.linear"),
)


def _stacks(double: tuple[Row, ...]) -> tuple[Stack, ...]:
    return (
        Stack("", "", (0,), _TOP),
        Stack("context_embedder.token_refiner.refiner_blocks.{}.",
              "txt_in.individual_token_refiner.blocks.{}.", range(2), REFINER),
        Stack("transformer_blocks.{}.", "double_blocks.{}.", range(54), double),
    )  # fmt: skip


_STACKS = _stacks(
    tuple(
        row._replace(native=Native(_APART[row.name])) if row.name in _APART else row
        for row in DOUBLE
    )
)
_COMFYUI = _stacks(DOUBLE)
_WIDTH = 2048
_SIZES = {
    "w": _WIDTH, **{f"{n}w": n * _WIDTH for n in (2, 4, 6)}, "head": 128, "text": 3584,
    "image": 1152,
}  # fmt: skip

FAMILY = Family(
    name="hunyuan-video-15",
    title="HunyuanVideo 1.5",
    task="text-to-video",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={
        "transformer": (
            *transformer_spellings("comfyui", native_slots(_COMFYUI, comfyui_name)),
            *transformer_spellings("original", native_slots(_STACKS))[:3],
        )
    },
    metadata=Metadata(
        "hunyuan-video-1.5",
        "hunyuan_video_1_5",
        "networks.lora_hv_1_5",
        also=("hunyuan_video_1_5", "hunyuan-video-1.5"),
    ),
    verified="diffusers model on the meta device, names and shapes",
    classes={"transformer": "HunyuanVideo15Transformer3DModel"},
    heads=heads(_STACKS),
    probes=(
        *(f"transformer_blocks.0.attn.to_{x}" for x in ("q", "k", "v", "out.0")),
        "transformer_blocks.0.ff.net.2",
    ),
    sign=r"double_blocks[._]|(?<!\d[._])transformer_blocks[._]|token_refiner",
    twins=("MiniMax Music 3", "NucleusMoE-Image"),
    shapes_only=True,  # the names are those of Flux.1 and HunyuanVideo
    one_alpha=False,
    programs={"comfyui": "comfyui"},
)
