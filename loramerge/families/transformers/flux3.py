"""Flux.3: blocks of the image, of images as conditions and of the text, then single blocks.

No layer has a bias. The text encoder, a language model, is not covered.

Source of the names: diffusers' `Flux3Transformer2DModel`, and the original single file as
diffusers' `convert_flux3_transformer_checkpoint_to_diffusers` reads it.
"""

from __future__ import annotations

from loramerge.families.spec import Component, Family, Metadata
from loramerge.families.stacks import (
    Stack,
    expand,
    heads,
    linear,
    native_slots,
    norm,
    transformer_spellings,
)

__all__ = ["FAMILY"]

_STREAMS = ("image", "image_cond", "txt")
_TOP = (
    linear("timestep_embedder.linear_1", "w", 256, "time_in.in_layer", bias=False),
    linear("timestep_embedder.linear_2", "w", "w", "time_in.out_layer", bias=False),
    *(
        linear(f"{sort}_stream_modulations.{stream}.linear", "3w", "w",
               f"{sort}_stream_modulations.{stream}.lin", bias=False)
        for sort in ("early", "single")
        for stream in _STREAMS
    ),
    linear("x_embedders.image", "w", 128, "emb_in.image", bias=False),
    linear("x_embedders.image_cond", "w", 128, "emb_in.image_cond", bias=False),
    linear("context_embedder", "w", 20480, "txt_in", bias=False),
    linear("norm_out.linear", "2w", "w", "final_layer.image.adaLN_modulation.1", bias=False,
           swapped=True),
    linear("proj_out", 128, "w", "final_layer.image.linear", bias=False),
)  # fmt: skip
_BLOCK = (
    *(linear(f"attn.to_{x}", "w", "w", f"{x}_proj", bias=False) for x in "qkv"),
    norm("attn.norm_q", "head", "norm.query_norm", weight=".scale"),
    norm("attn.norm_k", "head", "norm.key_norm", weight=".scale"),
    linear("attn.to_out.0", "w", "w", "attn_out", bias=False),
    linear("ff.linear_in", "6w", "w", "mlp_in", bias=False),
    linear("ff.linear_out", "w", "3w", "mlp_out", bias=False),
)
_STACKS = (
    Stack("", "", (0,), _TOP),
    *(
        Stack(f"{name}.{{}}.", f"{native}.{{}}.", range(count), _BLOCK)
        for name, native, count in (
            ("mode_blocks.image", "content_mode_blocks.image", 5),
            ("mode_blocks.image_cond", "content_mode_blocks.image_cond", 5),
            ("txt_mode_blocks", "txt_mode_blocks", 5),
            ("single_transformer_blocks", "single_blocks", 28),
        )
    ),
)
_WIDTH = 3072
_SIZES = {"w": _WIDTH, **{f"{n}w": n * _WIDTH for n in (2, 3, 6)}, "head": 128}

FAMILY = Family(
    name="flux3",
    title="Flux.3",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={"transformer": transformer_spellings("original", native_slots(_STACKS))},
    metadata=Metadata(None, None, also=("flux3", "flux-3", "flux.3")),
    verified="diffusers model on the meta device, names and shapes; its converters of files",
    classes={"transformer": "Flux3Transformer2DModel"},
    heads=heads(_STACKS),
    probes=(
        *(f"single_transformer_blocks.0.attn.to_{x}" for x in ("q", "k", "v", "out.0")),
        "mode_blocks.image.0.attn.to_q",
    ),
    sign=r"mode_blocks[._]|single_(?:transformer_)?blocks[._]\d+[._](?:attn|[qkv]_proj|mlp_|ff[._])",
    common_dialect="comfyui",
    programs={"comfyui": "comfyui"},
    one_alpha=False,
)
