"""HiDream O1: Qwen3-VL 8B, which draws with three small layers for pixels and time; the text too is its.

Nothing but these layers tells a checkpoint from one of Qwen3-VL, and an adapter of the language model's
layers alone fits both. Such an adapter counts as HiDream's where a program for pictures wrote it: after
`diffusion_model.`, in kohya's spelling, or without a prefix as DiffSynth-Studio does. PEFT's own files
are those of a language model, unless they hold a layer for pixels or time.

Source of the names and sizes: `Qwen3VLForConditionalGeneration` of its repository (210c9bff, verified),
with the published configuration, which ai-toolkit repeats. Of the dialects: musubi-tuner's
`lora_hidream_o1.py` (30c658c4), ai-toolkit's `hidream_o1_model.py`, which leaves `model.` out as
ComfyUI's network does, and DiffSynth-Studio's `examples/hidream_o1_image`.
"""

from __future__ import annotations

from loramerge.families.qwen3_vl import QWEN3_VL_SIZES, QWEN3_VL_STACKS
from loramerge.families.spec import Component, Family, Metadata, Module, Parameter, Slot, Spelling
from loramerge.families.stacks import Stack, expand, linear, native_slots, transformer_spellings

__all__ = ["FAMILY"]

_WRAPPER = "model."
_PIXELS = (
    linear("t_embedder1.mlp.0", "w", 256),
    linear("t_embedder1.mlp.2", "w", "w"),
    linear("x_embedder.proj1", "small", "pixels", bias=False),
    linear("x_embedder.proj2", "w", "small"),
    linear("final_layer2.linear", "pixels", "w"),
)
_STACKS = (*QWEN3_VL_STACKS, Stack(_WRAPPER, _WRAPPER, (0,), _PIXELS))
_SIZES = QWEN3_VL_SIZES | {"small": 4096 // 4, "pixels": 3 * 32 * 32}
_PARTS = ("language_model", "visual", "x_embedder", "t_embedder1", "final_layer2")


def _unwrapped(module: Module, parameter: Parameter) -> Slot:
    """Return the slot in what ComfyUI saves."""
    return Slot(f"{module.path.removeprefix(_WRAPPER)}.{parameter}")


FAMILY = Family(
    name="hidream-o1",
    title="HiDream O1",
    task="text-to-image",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={
        "transformer": (
            *transformer_spellings("original", native_slots(_STACKS), prefixes=("",)),
            *(
                Spelling("comfyui", prefix, _unwrapped)
                for prefix in ("model.diffusion_model.", "diffusion_model.", "")
            ),
        )
    },
    metadata=Metadata(
        "HiDream-O1-Image",
        "hidream_o1_image",
        "networks.lora_hidream_o1",
        also=("hidream_o1", "hidream-o1"),
    ),
    verified="the model of its repository on the meta device, names and shapes; all but five layers "
    "are those of transformers' model",
    classes={"transformer": "Qwen3VLForConditionalGeneration"},
    renamed={"comfyui": {_WRAPPER: ""}},
    heads=(*(f"{_WRAPPER}{part}." for part in _PARTS), "lm_head"),
    probes=tuple(f"model.language_model.layers.0.self_attn.{x}_proj" for x in "qkvo"),
    # dots for underscores are those of musubi-tuner's `convert_lora`, whose files nothing reads
    sign=(
        r"(?m)x[._]embedder[._]proj1|final[._]layer2|t[._]embedder1"
        r"|^(?:lora_unet|lora_transformer|lycoris|diffusion_model|transformer)[._]{1,2}"
        r"(?:model[._])?(?:language[._]model|visual)[._]"
        r"|^model\.language_model\.layers\.\d+\.(?:self_attn|mlp)\.[a-z]+_proj$"
    ),
    twins=("Qwen3-VL 8B",),
    shared=r"^transformer\.(?:model\.(?:language_model|visual)\.|lm_head$)",
    common_dialect="comfyui",
    programs={"comfyui": "comfyui"},
    one_alpha=False,
)
