"""Krea 2: one stream of image and text, with diffusers' and Krea's names.

Keys and values have a quarter of the heads of queries. Tables of modulation are not layers and are
left alone; so is the text encoder, a vision and language model.

Source of the names: diffusers' `Krea2Transformer2DModel`, and the original single file as
diffusers' `convert_krea2_transformer_checkpoint_to_diffusers` reads it.
"""

from __future__ import annotations

from loramerge.families.spec import Component, Family, Metadata
from loramerge.families.stacks import (
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


def _block(width: str, keys: str, hidden: str) -> tuple[Row, ...]:
    return (
        norm("norm1", width, "prenorm", weight=".scale"),
        norm("norm2", width, "postnorm", weight=".scale"),
        norm("attn.norm_q", "head", "attn.qknorm.qnorm", weight=".scale"),
        norm("attn.norm_k", "head", "attn.qknorm.knorm", weight=".scale"),
        *(
            linear(f"attn.{name}", rows, width, f"attn.{native}", bias=False)
            for name, rows, native in (
                ("to_q", width, "wq"),
                ("to_k", keys, "wk"),
                ("to_v", keys, "wv"),
                ("to_gate", width, "gate"),
                ("to_out.0", width, "wo"),
            )
        ),
        linear("ff.gate", hidden, width, "mlp.gate", bias=False),
        linear("ff.up", hidden, width, "mlp.up", bias=False),
        linear("ff.down", width, hidden, "mlp.down", bias=False),
    )


_TOP = (
    linear("img_in", "w", 64, "first"),
    linear("time_embed.linear_1", "w", 256, "tmlp.0"),
    linear("time_embed.linear_2", "w", "w", "tmlp.2"),
    linear("time_mod_proj", "6w", "w", "tproj.1"),
    norm("txt_in.norm", "text", "txtmlp.0", weight=".scale"),
    linear("txt_in.linear_1", "w", "text", "txtmlp.1"),
    linear("txt_in.linear_2", "w", "w", "txtmlp.3"),
    linear("text_fusion.projector", 1, 12, "txtfusion.projector", bias=False),
    norm("final_layer.norm", "w", "last.norm", weight=".scale"),
    linear("final_layer.linear", 64, "w", "last.linear"),
)
_STACKS = (
    Stack("", "", (0,), _TOP),
    *(
        Stack(f"text_fusion.{sort}.{{}}.", f"txtfusion.{sort}.{{}}.", range(2),
              _block("text", "text", "text_hidden"))
        for sort in ("layerwise_blocks", "refiner_blocks")
    ),
    Stack("transformer_blocks.{}.", "blocks.{}.", range(28), _block("w", "keys", "hidden")),
)  # fmt: skip
_WIDTH = 6144
_SIZES = {
    "w": _WIDTH, "6w": 6 * _WIDTH, "keys": _WIDTH // 4, "hidden": 16384, "head": 128,
    "text": 2560, "text_hidden": 6912,
}  # fmt: skip

FAMILY = Family(
    name="krea2",
    title="Krea 2",
    task="text-to-image",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={"transformer": transformer_spellings("original", native_slots(_STACKS))},
    metadata=Metadata("Krea-2", "krea2", "networks.lora_krea2", also=("krea2", "krea-2", "krea_2")),
    verified="diffusers model on the meta device, names and shapes; its converters of files",
    classes={"transformer": "Krea2Transformer2DModel"},
    heads=heads(_STACKS),
    probes=tuple(f"transformer_blocks.0.attn.to_{one}" for one in ("q", "k", "v", "gate", "out.0")),
    sign=r"blocks[._]\d+[._](?:attn|mlp|ff)[._]|txtfusion|text_fusion",
    programs={"comfyui": "comfyui"},
    one_alpha=False,
)
