"""Keys of diffusers before PEFT: attention processors, and `.lora.down`."""

from __future__ import annotations

from loramerge.dialects.spec import Dialect, Form
from loramerge.dialects.spelling import COMPONENTS, path, prefixes, short_path, spell
from loramerge.families import Family, Module

__all__ = ["DIALECT"]

_PROCESSOR_LEAVES = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out"}
_ENCODER_LEAVES = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def _processor(family: Family, component: str, module: Module) -> str | None:
    """Return `….attn1.processor.to_q_lora`, and `….self_attn.to_q_lora` in text encoders."""
    leaves = _PROCESSOR_LEAVES if component == "unet" else _ENCODER_LEAVES
    middle = ".processor." if component == "unet" else "."
    for leaf, spelled in leaves.items():
        if module.path.endswith("." + leaf):
            return f"{module.path[: -len(leaf) - 1]}{middle}{spelled}_lora"
    return None


def _encoders(component: str) -> tuple[str, ...]:
    return (f"{component}.",) if component.startswith("text_encoder") else ()


_UNET = {"unet": ("unet.", "")}
_TRANSFORMER = {"transformer": ("transformer.",)}
_SUFFIXES = {"down": (".lora.down.weight",), "up": (".lora.up.weight",)}
_NAME = "diffusers-legacy"

DIALECT = Dialect(
    name=_NAME,
    title="diffusers before PEFT (attention processors, `.lora.down`)",
    example="unet.down_blocks.0.….attn1.to_q.lora.down.weight",
    order=2,
    forms=(
        Form(
            spell(prefixes(_NAME, _UNET), path),
            _SUFFIXES,
        ),
        Form(spell(prefixes(_NAME, _TRANSFORMER), path), _SUFFIXES, written=False),  # SimpleTuner's
        Form(
            spell(prefixes(_NAME, _encoders), path, short_path),
            {
                "down": (".lora_linear_layer.down.weight", ".lora.down.weight"),
                "up": (".lora_linear_layer.up.weight", ".lora.up.weight"),
            },
        ),
        Form(
            spell(prefixes(_NAME, lambda name: _UNET.get(name) or _encoders(name)), _processor),
            {"down": (".down.weight",), "up": (".up.weight",)},
        ),
    ),
    alpha="none",
    prefixes={f"{name}.": name for name in COMPONENTS},
    writable="linear low-rank deltas of UNets and text encoders; those of transformers are only read",
    embeddings=None,
)
