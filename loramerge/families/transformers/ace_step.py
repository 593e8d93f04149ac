"""ACE-Step 1.5: a diffusion transformer of music, with diffusers' and the original's names.

The original file has it as `decoder`, beside its encoders, which are not covered, nor is
its last, transposed convolution. Tables of modulation
are not layers and are left alone.

Source of the names: diffusers' `AceStepTransformer1DModel`, its
`_convert_non_diffusers_ace_step_lora_to_diffusers`, and for the other layers ComfyUI's network.
"""

from __future__ import annotations

from loramerge.families.spec import Component, Family, Metadata
from loramerge.families.stacks import (
    Native,
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
        norm(f"{name}_norm", "w"),
        *(
            linear(f"{name}.{ours}", rows, "w", f"{name}.{theirs}_proj", bias=False)
            for ours, rows, theirs in (
                ("to_q", "w", "q"),
                ("to_k", "keys", "k"),
                ("to_v", "keys", "v"),
                ("to_out.0", "w", "o"),
            )
        ),
        norm(f"{name}.norm_q", "head", f"{name}.q_norm"),
        norm(f"{name}.norm_k", "head", f"{name}.k_norm"),
    )


_TOP = (
    Row("proj_in_conv", "conv", ("w", 192, 2), True, Native("proj_in.1")),
    *(
        row
        for name in ("time_embed", "time_embed_r")
        for row in (
            linear(f"{name}.linear_1", "w", 256),
            linear(f"{name}.linear_2", "w", "w"),
            linear(f"{name}.time_proj", "6w", "w"),
        )
    ),
    linear("condition_embedder", "w", "w"),
    norm("norm_out", "w"),
)
_LAYER = (
    *_attention("self_attn"),
    *_attention("cross_attn"),
    norm("mlp_norm", "w"),
    linear("mlp.gate_proj", "hidden", "w", bias=False),
    linear("mlp.up_proj", "hidden", "w", bias=False),
    linear("mlp.down_proj", "w", "hidden", bias=False),
)
_STACKS = (Stack("", "", (0,), _TOP), Stack("layers.{}.", "layers.{}.", range(24), _LAYER))
_PREFIXES = ("decoder.", "", "model.diffusion_model.decoder.", "diffusion_model.decoder.")
_WIDTH = 2048
_SIZES = {"w": _WIDTH, "6w": 6 * _WIDTH, "keys": 1024, "hidden": 6144, "head": 128}

FAMILY = Family(
    name="ace-step",
    title="ACE-Step 1.5",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={"transformer": transformer_spellings("original", native_slots(_STACKS), _PREFIXES)},
    metadata=Metadata(None, None, also=("ace-step", "ace_step", "acestep")),
    verified="diffusers model on the meta device, names and shapes",
    classes={"transformer": "AceStepTransformer1DModel"},
    prefixes={"comfyui": {"transformer": ("diffusion_model.decoder.",)}},
    heads=heads(_STACKS),
    probes=(
        *(f"layers.0.self_attn.to_{x}" for x in ("q", "k", "v", "out.0")),
        *(f"layers.0.cross_attn.to_{x}" for x in ("q", "k", "v", "out.0")),
    ),
    sign=r"layers[._]\d+[._](?:self_attn|cross_attn)[._]",
    common_dialect="diffusers",
    programs={"comfyui": "comfyui"},
    one_alpha=False,
)
