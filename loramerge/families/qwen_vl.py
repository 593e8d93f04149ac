"""Qwen2.5-VL, a vision and language model that serves as a text encoder, with transformers' names.

Since transformers 4.52 its two halves lie in `model.language_model` and `model.visual`; before that
they were `model` and `visual`, as files published since still have them, and ComfyUI's. Both are
accepted.
"""

from __future__ import annotations

from collections.abc import Iterator

from loramerge.families.levels import without_language_model
from loramerge.families.spec import Module, Parameter, Slot, Spelling, plain_slot

__all__ = ["qwen_vl_modules", "qwen_vl_spellings"]


def _vision(width: int = 1280, hidden: int = 3420, blocks: int = 32) -> Iterator[Module]:
    w = width
    yield Module("patch_embed.proj", "conv", (w, 3, 2, 14, 14), False)
    for i in range(blocks):
        block = f"blocks.{i}"
        yield Module(f"{block}.norm1", "norm", (w,), False)
        yield Module(f"{block}.norm2", "norm", (w,), False)
        yield Module(f"{block}.attn.qkv", "linear", (3 * w, w), True)
        yield Module(f"{block}.attn.proj", "linear", (w, w), True)
        yield Module(f"{block}.mlp.gate_proj", "linear", (hidden, w), True)
        yield Module(f"{block}.mlp.up_proj", "linear", (hidden, w), True)
        yield Module(f"{block}.mlp.down_proj", "linear", (w, hidden), True)
    yield Module("merger.ln_q", "norm", (w,), False)
    yield Module("merger.mlp.0", "linear", (4 * w, 4 * w), True)
    yield Module("merger.mlp.2", "linear", (3584, 4 * w), True)


def _language(width: int = 3584, hidden: int = 18944, layers: int = 28) -> Iterator[Module]:
    """Keys and values have four heads of 128, queries 28."""
    w, keys = width, 512
    yield Module("embed_tokens", "embedding", (152064, w), False)
    for i in range(layers):
        layer = f"layers.{i}"
        for name, rows in (("q_proj", w), ("k_proj", keys), ("v_proj", keys)):
            yield Module(f"{layer}.self_attn.{name}", "linear", (rows, w), True)
        yield Module(f"{layer}.self_attn.o_proj", "linear", (w, w), False)
        yield Module(f"{layer}.mlp.gate_proj", "linear", (hidden, w), False)
        yield Module(f"{layer}.mlp.up_proj", "linear", (hidden, w), False)
        yield Module(f"{layer}.mlp.down_proj", "linear", (w, hidden), False)
        yield Module(f"{layer}.input_layernorm", "norm", (w,), False)
        yield Module(f"{layer}.post_attention_layernorm", "norm", (w,), False)
    yield Module("norm", "norm", (w,), False)


def qwen_vl_modules() -> Iterator[Module]:
    """Yield every layer of the 7B model with its transformers path and full-width shape."""
    for module in _vision():
        yield module._replace(path=f"model.visual.{module.path}")
    for module in _language():
        yield module._replace(path=f"model.language_model.{module.path}")
    yield Module("lm_head", "linear", (152064, 3584), False)


def _older(module: Module, parameter: Parameter) -> Slot:
    return Slot(f"{without_language_model(module.path)}.{parameter}")


def qwen_vl_spellings(prefix: str) -> tuple[Spelling, ...]:
    """Return the spellings of the model; `prefix` is the one in a single file."""
    return (
        Spelling("comfyui", prefix, _older),
        Spelling("diffusers", "", plain_slot),
        Spelling("diffusers", "", _older),
    )
