"""Kandinsky 5: blocks of the text, then blocks of the picture or video; the names are diffusers' own.

The modules are those of Pro; Lite has fewer blocks of the same names, for images and for videos with
sizes of its own. The text encoders are not covered.

Source of the names: diffusers' `Kandinsky5Transformer3DModel`, whose names ComfyUI's network has too.
Of the sizes: musubi-tuner's `kandinsky5/configs.py`.
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


def _attention(name: str) -> tuple[Row, ...]:
    return (
        *(linear(f"{name}.to_{x}", "w", "w") for x in ("query", "key", "value")),
        norm(f"{name}.query_norm", "head"),
        norm(f"{name}.key_norm", "head"),
        linear(f"{name}.out_layer", "w", "w"),
    )


_FEED_FORWARD = (
    linear("feed_forward.in_layer", "hidden", "w", bias=False),
    linear("feed_forward.out_layer", "w", "hidden", bias=False),
)
_TEXT = (
    linear("text_modulation.out_layer", "6w", "time"),
    *_attention("self_attention"),
    *_FEED_FORWARD,
)
_VISUAL = (
    linear("visual_modulation.out_layer", "9w", "time"),
    *_attention("self_attention"),
    *_attention("cross_attention"),
    *_FEED_FORWARD,
)
_TOP = (
    linear("time_embeddings.in_layer", "time", "w"),
    linear("time_embeddings.out_layer", "time", "time"),
    linear("text_embeddings.in_layer", "w", 3584),
    norm("text_embeddings.norm", "w", bias=True),
    linear("pooled_text_embeddings.in_layer", "time", 768),
    norm("pooled_text_embeddings.norm", "time", bias=True),
    linear("visual_embeddings.in_layer", "w", 132),
    linear("out_layer.modulation.out_layer", "2w", "time"),
    linear("out_layer.out_layer", 64, "w"),
)
_BLOCKS = "{}_transformer_blocks.{{}}."
_STACKS = (
    Stack("", "", (0,), _TOP),
    *(
        Stack(_BLOCKS.format(sort), _BLOCKS.format(sort), range(count), rows)
        for sort, count, rows in (("text", 4, _TEXT), ("visual", 60, _VISUAL))
    ),
)


def _sizes(width: int, hidden: int, time: int, head: int) -> dict[str, int]:
    return {
        "w": width, **{f"{n}w": n * width for n in (2, 6, 9)}, "hidden": hidden, "time": time,
        "head": head,
    }  # fmt: skip


_SIZES = _sizes(4096, 16384, 1024, 128)
_LITE = (_sizes(1792, 7168, 512, 64), _sizes(2560, 10240, 512, 128))
_FROM_TEXT = {132: 64}  # the channels of networks that see no image

FAMILY = Family(
    name="kandinsky5",
    title="Kandinsky 5",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={"transformer": transformer_spellings("original", native_slots(_STACKS))},
    metadata=Metadata("Kandinsky-5", "kandinsky5", "networks.lora_kandinsky", also=("kandinsky",)),
    verified="diffusers model on the meta device, names and shapes",
    classes={"transformer": "Kandinsky5Transformer3DModel"},
    heads=heads(_STACKS),
    probes=tuple(
        f"visual_transformer_blocks.0.self_attention.to_{x}" for x in ("query", "key", "value")
    ),
    sign=r"(?:visual|text)_transformer_blocks[._]",
    sizes=tuple(
        {ours: own[name] for name, ours in _SIZES.items()} | channels
        for own in (_SIZES, *_LITE)
        for channels in ({}, _FROM_TEXT)
    ),
    programs={"comfyui": "comfyui"},
    one_alpha=False,
)
