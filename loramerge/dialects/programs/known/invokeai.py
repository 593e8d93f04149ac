"""InvokeAI: its loader of LoRA files and its patcher of layers.

It tells what a file is for by its keys, and refuses files that it cannot tell.
"""

from __future__ import annotations

from loramerge.dialects.programs.others import ALL_BY_INPUTS, NO_MAGNITUDES
from loramerge.dialects.programs.spec import Program, Reads

__all__ = ["PROGRAM"]

_UNET = ("lora", "loha", "full", "bias", "dora of outputs", "dora of inputs")
_XL = (*_UNET, "lokr", "norm", "norm without bias")  # told by its deep blocks, whatever the kind
_FLUX = ("lora", "loha", "lokr", "full", "ia3")
_NETWORK = ("lora", "lokr", "dora of outputs", "dora of inputs")
_PEFT = ("lora", "dora of outputs", "dora of inputs")
_BY_INPUTS = {"dora of outputs": ALL_BY_INPUTS}
_DROPPED = {"dora of outputs": NO_MAGNITUDES, "dora of inputs": NO_MAGNITUDES}
_TEXT = "^text_encoder"
_SECOND = r"^transformer_2\."
_IN_BLOCKS = r"^transformer\.(?:(?:single_)?transformer_blocks|blocks|layers|\w+_refiner)\.\d+\."
_FLUX2 = ("flux2-dev", "flux2-klein-4b", "flux2-klein-9b")

PROGRAM = Program(
    name="invokeai",
    title="InvokeAI",
    version="6.14.0-alpha",
    order=7,
    reads=(
        Reads(
            ("kohya",),
            ("sd15", "sd21"),
            _UNET,
            tried=_UNET,
            otherwise=_BY_INPUTS,
            told_by=r"attn2\.to_[kv]$|^text_encoder.*self_attn",
        ),
        Reads(
            ("kohya",),
            ("sdxl",),
            _XL,
            tried=_XL,
            otherwise=_BY_INPUTS,
            told_by=r"attn2\.to_[kv]$|^unet.*transformer_blocks\.[2-9]\.",
        ),
        # one key that it does not know, and it takes the file for another model's
        Reads(
            ("kohya",),
            ("flux1",),
            _FLUX,
            r"^transformer\.proj_out$",
            tried=_FLUX,
            refuses=r"^text_encoder_2\.|^transformer\.(?!(?:single_)?transformer_blocks\.|proj_out$)",
        ),
        Reads(
            ("comfyui",),
            ("flux1",),
            ("lora",),
            _TEXT,
            tried=("lora",),
            told_by=_IN_BLOCKS,
            alphas="refused",
        ),
        Reads(
            ("comfyui",),
            ("flux1",),
            ("loha", "lokr"),
            tried=("loha", "lokr"),
            refuses=_TEXT,
            alphas="unseen",
        ),
        Reads(
            ("kohya",),
            ("anima",),
            _NETWORK,
            r"^transformer\.(?!transformer_blocks\.)|^text_conditioner\..*\.mlp\.",
            tried=_NETWORK,
            otherwise=_BY_INPUTS,
            told_by=_IN_BLOCKS,
        ),
        Reads(
            ("comfyui",),
            ("anima",),
            ("lora", "lokr"),
            _TEXT,
            tried=("lora", "lokr"),
            told_by=_IN_BLOCKS,
            alphas="left out",
        ),
        Reads(
            ("kohya",),
            ("wan",),
            _NETWORK,
            rf"{_TEXT}|^transformer\.(?!blocks\.)|attn2\.add_[kv]_proj",
            tried=_NETWORK,
            otherwise=_BY_INPUTS,
            told_by=_IN_BLOCKS,
            unseen=_SECOND,
        ),
        Reads(
            ("diffusers",),
            ("wan",),
            ("lora",),
            rf"{_TEXT}|^transformer\.(?!blocks\.)",
            tried=("lora",),
            told_by=_IN_BLOCKS,
            alphas="unseen",
            unseen=_SECOND,
        ),
        Reads(
            ("kohya",),
            ("qwen-image",),
            _NETWORK,
            rf"{_TEXT}|^transformer\.(?!transformer_blocks\.)",
            tried=_NETWORK,
            otherwise=_BY_INPUTS,
            told_by=_IN_BLOCKS,
        ),
        Reads(
            ("diffusers",),
            ("qwen-image",),
            ("lora",),
            _TEXT,
            tried=("lora",),
            told_by=_IN_BLOCKS,
            alphas="unseen",
        ),
        Reads(
            ("comfyui",),
            ("z-image",),
            _PEFT,
            tried=_PEFT,
            otherwise=_DROPPED,
            told_by=_IN_BLOCKS,
            alphas="left out",
        ),
        Reads(
            ("diffusers",),
            ("z-image",),
            ("lora",),
            tried=("lora",),
            told_by=_IN_BLOCKS,
            alphas="unseen",
        ),
        Reads(("kohya",), ("z-image",), (), tried=("lora", "loha", "lokr", "full")),
        # it holds FLUX.2 by diffusers' names, and does not convert those of the original here
        Reads(
            ("diffusers",),
            _FLUX2,
            ("lora",),
            tried=("lora",),
            told_by=r"transformer_blocks\.0\.(?:attn\.to_qkv_mlp_proj|ff\.linear_in)$",
            alphas="unseen",
        ),
        Reads(
            ("kohya",),
            _FLUX2,
            (),
            tried=_FLUX,
            refuses=r"^transformer\.(?!(?:single_)?transformer_blocks\.|proj_out$)",
        ),
        Reads(("comfyui",), _FLUX2, (), tried=("lora",)),
    ),
    refuses=frozenset({"lone bias", "oft", "oft with factors", "oft with constraint", "glora"}),
)
