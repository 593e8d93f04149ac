"""The template of Flux.2, dev and the two sizes of klein, with diffusers' and Black Forest Labs'
names.

Unlike Flux.1, all blocks share their modulation, no layer has a bias, the feed-forward is gated,
and diffusers keeps what the single blocks fuse. The text encoders, language models, are not
covered.

Source of the names: diffusers' `Flux2Transformer2DModel` (verified), and the original single files
as diffusers' `convert_flux2_transformer_checkpoint_to_diffusers` reads them (verified by
conversion). Of the sizes: the published configurations.
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

__all__ = ["flux2"]


def _linear(name: str, rows: str, columns: str, native: str, **how: bool) -> Row:
    return Row(name, "linear", (rows, columns), False, Native(native, **how))  # type: ignore[arg-type]


def _qkv(fused: str, *names: str) -> tuple[Row, ...]:
    """Queries, keys and values: equal thirds of one tensor, in this order."""
    return tuple(
        Row(name, "linear", ("w", "w"), False, Native(fused, part, 3))
        for part, name in enumerate(names)
    )


def _norms(*names: tuple[str, str]) -> tuple[Row, ...]:
    return tuple(
        Row(name, "norm", ("head",), False, Native(native, weight=".scale"))
        for name, native in names
    )


def _embedder(name: str, native: str) -> tuple[Row, ...]:
    return (
        _linear(f"time_guidance_embed.{name}.linear_1", "w", "frequencies", f"{native}.in_layer"),
        _linear(f"time_guidance_embed.{name}.linear_2", "w", "w", f"{native}.out_layer"),
    )


_TIME = _embedder("timestep_embedder", "time_in")
_GUIDANCE = _embedder("guidance_embedder", "guidance_in")
_TOP = (
    _linear("double_stream_modulation_img.linear", "6w", "w", "double_stream_modulation_img.lin"),
    _linear("double_stream_modulation_txt.linear", "6w", "w", "double_stream_modulation_txt.lin"),
    _linear("single_stream_modulation.linear", "3w", "w", "single_stream_modulation.lin"),
    _linear("x_embedder", "w", "channels", "img_in"),
    _linear("context_embedder", "w", "context", "txt_in"),
)
_DOUBLE = (
    *_qkv("img_attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    *_norms(
        ("attn.norm_q", "img_attn.norm.query_norm"),
        ("attn.norm_k", "img_attn.norm.key_norm"),
    ),
    _linear("attn.to_out.0", "w", "w", "img_attn.proj"),
    *_norms(
        ("attn.norm_added_q", "txt_attn.norm.query_norm"),
        ("attn.norm_added_k", "txt_attn.norm.key_norm"),
    ),
    *_qkv("txt_attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    _linear("attn.to_add_out", "w", "w", "txt_attn.proj"),
    _linear("ff.linear_in", "6w", "w", "img_mlp.0"),
    _linear("ff.linear_out", "w", "3w", "img_mlp.2"),
    _linear("ff_context.linear_in", "6w", "w", "txt_mlp.0"),
    _linear("ff_context.linear_out", "w", "3w", "txt_mlp.2"),
)
# queries, keys, values, and the gated feed-forward, which is six times as high: one layer in both
_SINGLE = (
    _linear("attn.to_qkv_mlp_proj", "9w", "w", "linear1"),
    *_norms(("attn.norm_q", "norm.query_norm"), ("attn.norm_k", "norm.key_norm")),
    _linear("attn.to_out", "w", "4w", "linear2"),
)
# the original modulates by (shift, scale), diffusers by (scale, shift)
_LAST = (
    _linear("norm_out.linear", "2w", "w", "final_layer.adaLN_modulation.1", swapped=True),
    _linear("proj_out", "channels", "w", "final_layer.linear"),
)


def flux2(
    name: str,
    title: str,
    *,
    width: int,
    blocks: tuple[int, int],
    context: int,
    guided: bool,
    metadata: Metadata,
) -> Family:
    """Make a family of one size.

    Args:
        blocks: how many double and single ones.
        context: width of the text's features: three layers of the language model.
        guided: the strength of the guidance is an input.
    """
    double, single = blocks
    stacks = (
        Stack("", "", (0,), (*_TIME, *(_GUIDANCE if guided else ()), *_TOP)),
        Stack("transformer_blocks.{}.", "double_blocks.{}.", range(double), _DOUBLE),
        Stack("single_transformer_blocks.{}.", "single_blocks.{}.", range(single), _SINGLE),
        Stack("", "", (0,), _LAST),
    )
    sizes = {
        **{f"{n}w": n * width for n in (2, 3, 4, 6, 9)},
        "w": width, "head": 128, "frequencies": 256, "context": context, "channels": 128,
    }  # fmt: skip
    return Family(
        name=name,
        title=title,
        task="text-to-image",
        gguf="flux",
        build=lambda: (Component("transformer", tuple(expand(stacks, sizes))),),
        spellings={"transformer": transformer_spellings("bfl", native_slots(stacks))},
        metadata=metadata,
        verified="diffusers model on the meta device, names and shapes; its converters of files",
        classes={"transformer": "Flux2Transformer2DModel"},
        heads=heads(stacks),
        probes=(
            *(f"transformer_blocks.0.attn.to_{x}" for x in ("q", "k", "v", "out.0")),
            "single_transformer_blocks.0.attn.to_qkv_mlp_proj",
            "single_transformer_blocks.0.attn.to_out",
        ),
        sign=r"(?:double|single)_blocks[._]|(?<!\d[._])transformer_blocks[._]",
        one_alpha=False,
        programs={"comfyui": "comfyui", "invokeai": "diffusers"},
    )
