"""AuraFlow: joint blocks of image and text, then single blocks, with diffusers' and its own names.

Source of the names: diffusers' `AuraFlowTransformer2DModel`, and the original single file as diffusers'
`convert_auraflow_transformer_checkpoint_to_diffusers` reads it.
"""

from __future__ import annotations

from loramerge.families.spec import Component, Family, Metadata
from loramerge.families.stacks import (
    Native,
    Row,
    Stack,
    expand,
    heads,
    native_slots,
    transformer_spellings,
)

__all__ = ["FAMILY"]


def _linear(name: str, rows: str | int, columns: str | int, native: str, bias: bool = False) -> Row:
    return Row(name, "linear", (rows, columns), bias, Native(native))


def _attention(names: tuple[str, ...], native: str) -> tuple[Row, ...]:
    return tuple(
        _linear(f"attn.{name}", "w", "w", f"attn.{native}{letter}")
        for name, letter in zip(names, "qkvo", strict=True)
    )


def _feed_forward(name: str, native: str) -> tuple[Row, ...]:
    return (
        _linear(f"{name}.linear_1", "hidden", "w", f"{native}.c_fc1"),
        _linear(f"{name}.linear_2", "hidden", "w", f"{native}.c_fc2"),
        _linear(f"{name}.out_projection", "w", "hidden", f"{native}.c_proj"),
    )


_IMAGE = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_JOINT = (
    _linear("norm1.linear", "6w", "w", "modX.1"),
    _linear("norm1_context.linear", "6w", "w", "modC.1"),
    *_attention(_IMAGE, "w2"),
    *_attention(_TEXT, "w1"),
    *_feed_forward("ff", "mlpX"),
    *_feed_forward("ff_context", "mlpC"),
)
_SINGLE = (
    _linear("norm1.linear", "6w", "w", "modCX.1"),
    *_attention(_IMAGE, "w1"),
    *_feed_forward("ff", "mlp"),
)
_TOP = (
    _linear("pos_embed.proj", "w", 16, "init_x_linear", bias=True),
    _linear("context_embedder", "w", 2048, "cond_seq_linear"),
    _linear("time_step_proj.linear_1", "w", 256, "t_embedder.mlp.0", bias=True),
    _linear("time_step_proj.linear_2", "w", "w", "t_embedder.mlp.2", bias=True),
    Row("norm_out.linear", "linear", ("2w", "w"), False, Native("modF.1", swapped=True)),
    _linear("proj_out", 16, "w", "final_linear"),
)
_STACKS = (
    Stack("", "", (0,), _TOP),
    Stack("joint_transformer_blocks.{}.", "double_layers.{}.", range(4), _JOINT),
    Stack("single_transformer_blocks.{}.", "single_layers.{}.", range(32), _SINGLE),
)
_WIDTH = 3072
_SIZES = {"w": _WIDTH, "2w": 2 * _WIDTH, "6w": 6 * _WIDTH, "hidden": 8192}

FAMILY = Family(
    name="auraflow",
    title="AuraFlow",
    task="text-to-image",
    gguf="aura",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={"transformer": transformer_spellings("original", native_slots(_STACKS))},
    metadata=Metadata("auraflow", None),
    verified="diffusers model on the meta device, names and shapes; its converters of files",
    classes={"transformer": "AuraFlowTransformer2DModel"},
    heads=heads(_STACKS),
    sign=r"joint_transformer_blocks|single_transformer_blocks|(?:double|single)_layers",
    probes=(
        "joint_transformer_blocks.0.attn.add_q_proj",
        *(f"single_transformer_blocks.0.attn.to_{x}" for x in ("q", "k", "v", "out.0")),
    ),
    programs={"comfyui": "comfyui"},
    one_alpha=False,
    order=1,  # behind Flux.1, which has single blocks of the same names and width
)
