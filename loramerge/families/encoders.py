"""Spellings of text encoders beside diffusion transformers: alone, in folders, or all in one file.

ComfyUI's files that hold everything keep transformers' names behind a prefix for each encoder. T5 in
GGUF files, as ComfyUI-GGUF reads them, has the names of llama.cpp.
"""

from __future__ import annotations

from loramerge.families.levels import without_text_model
from loramerge.families.llama_cpp import t5_stem
from loramerge.families.spec import Module, Parameter, Slot, Spelling, plain_slot

__all__ = ["clip_spellings", "t5_spellings"]


def _short(module: Module, parameter: Parameter) -> Slot:
    return Slot(f"{without_text_model(module.path)}.{parameter}")


def _of_llama_cpp(module: Module, parameter: Parameter) -> Slot:
    return Slot(f"{t5_stem(module.path)}.{parameter}")


def clip_spellings(prefix: str) -> tuple[Spelling, ...]:
    """Return the spellings of a CLIP text encoder; `prefix` is the one in a single file."""
    return (
        Spelling("comfyui", prefix, plain_slot),
        Spelling("comfyui", prefix, _short),
        Spelling("diffusers", "", plain_slot),
        Spelling("diffusers", "", _short),
    )


def t5_spellings(prefix: str) -> tuple[Spelling, ...]:
    """Return the spellings of a T5 encoder; `prefix` is the one in a single file."""
    return (
        Spelling("comfyui", prefix, plain_slot),
        Spelling("diffusers", "", plain_slot),
        Spelling("llama.cpp", "", _of_llama_cpp),
    )
