"""Lumina Image 2.0, with diffusers' and its own names, and its text encoder, Gemma 2.

The original's last norm, which nothing uses, is not covered.

Source of the names: see `families.lumina`. Of the sizes: the published configuration.
"""

from __future__ import annotations

from loramerge.families.decoder import DECODER_SIGN, GEMMA2_2B, decoder_modules, decoder_spellings
from loramerge.families.lumina import lumina_sizes, lumina_stacks
from loramerge.families.spec import Component, Family, Metadata
from loramerge.families.stacks import expand, heads, native_slots, transformer_spellings

__all__ = ["FAMILY"]

_STACKS = lumina_stacks(26)
_SIZES = lumina_sizes(width=2304, head=96, hidden=4 * 2304, text=2304)

FAMILY = Family(
    name="lumina2",
    title="Lumina Image 2.0",
    task="text-to-image",
    gguf="lumina2",
    build=lambda: (
        Component("transformer", tuple(expand(_STACKS, _SIZES))),
        Component("text_encoder", tuple(decoder_modules(GEMMA2_2B))),
    ),
    spellings={
        "transformer": transformer_spellings("original", native_slots(_STACKS)),
        "text_encoder": decoder_spellings("text_encoders.gemma2_2b.transformer."),
    },
    metadata=Metadata("lumina-2", "lumina2", "networks.lora_lumina", also=("lumina",)),
    verified="diffusers and transformers models on the meta device, names and shapes; "
    "diffusers' converters of files",
    classes={
        "transformer": "Lumina2Transformer2DModel",
        "text_encoder": "Gemma2Model",
    },
    prefixes={
        "kohya": {"text_encoder": ("lora_te_", "lora_te1_")},
        # without a folder's name it is an adapter of the language model, and of no family
        "peft": {"text_encoder": ("text_encoder/base_model.model.",)},
    },
    heads=heads(_STACKS),
    probes=(
        *(f"layers.0.attn.to_{x}" for x in ("q", "k", "v", "out.0")),
        "layers.0.feed_forward.linear_1",
        "layers.0.norm1.linear",
    ),
    sign=(
        r"(?:layers|_refiner)[._]\d+[._](?:att|feed_forward|adaLN|norm1|ffn)"
        rf"|cap_embedder|caption_embedder|{DECODER_SIGN}"
    ),
    one_alpha=False,
    programs={"comfyui": "comfyui"},
)
