"""OmniGen 2: Lumina 2's stream in other sizes, with a third refiner for the pictures it is given.

All files have the names that diffusers has for Lumina 2. No trainer adapts the text encoder
(Qwen2.5-VL 3B, the pipeline's `mllm`), which is not covered.

Source of the names: `OmniGen2Transformer2DModel` of its repository (0f72fa92) and of ComfyUI. Of the
sizes: the repository's `options/ft_lora.yml`, which ComfyUI's `model_detection.py` repeats. Of the
dialects: its `lora_pipeline.py` (`transformer.`), diffusion-pipe's `omnigen2.py` (`diffusion_model.`),
and ComfyUI's `lora.py` (no prefix, as the adapters of UMO).
"""

from __future__ import annotations

from loramerge.families.lumina import MODULATED, lumina_sizes, lumina_stacks
from loramerge.families.spec import Component, Family, Metadata
from loramerge.families.stacks import (
    Row,
    Stack,
    expand,
    heads,
    linear,
    native_slots,
    transformer_spellings,
    with_one_name,
)

__all__ = ["FAMILY"]

_OF_PICTURES = (
    linear("ref_image_patch_embedder", "w", 64),
    Row("image_index_embedding", "matrix", (5, "w"), False, None),
)
_REFINER = "ref_image_refiner.{}."
_STACKS = with_one_name(
    (
        *lumina_stacks(32),
        Stack("", "", (0,), _OF_PICTURES),
        Stack(_REFINER, _REFINER, range(2), MODULATED),
    )
)
# four times the width, in whole parts of 256
_SIZES = lumina_sizes(width=2520, head=120, hidden=10240, text=2048)

FAMILY = Family(
    name="omnigen2",
    title="OmniGen 2",
    task="text-to-image",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={"transformer": transformer_spellings("original", native_slots(_STACKS))},
    metadata=Metadata(None, None, also=("omnigen2", "omnigen-2")),
    verified="the model of its repository and ComfyUI's on the meta device, names and shapes; "
    "diffusers' model of Lumina 2 in its sizes",
    heads=heads(_STACKS),
    probes=(
        *(f"layers.0.attn.to_{x}" for x in ("q", "k", "v", "out.0")),
        "layers.0.feed_forward.linear_1",
        "layers.0.norm1.linear",
    ),
    sign=r"(?:layers|_refiner)[._]\d+[._](?:attn|feed_forward|norm)|ref_image_|time_caption_embed",
    one_alpha=False,
    programs={"comfyui": "comfyui"},
)
