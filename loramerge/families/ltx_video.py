"""The template of LTX-Video, 2B (0.9.0 to 0.9.6) and 13B (0.9.7, 0.9.8).

Names are diffusers' and Lightricks'.

Modulation tables are not layers and are left alone; so is the text encoder.

Source of the names: diffusers' `LTXVideoTransformer3DModel` (verified), and the original single
files as diffusers' `convert_ltx_transformer_checkpoint_to_diffusers` reads them (verified by
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

__all__ = ["ltx_video"]


def _linear(name: str, rows: str | int, columns: str | int, native: str | None = None) -> Row:
    return Row(name, "linear", (rows, columns), True, Native(native or name))


def _attention(name: str) -> tuple[Row, ...]:
    return (
        Row(f"{name}.norm_q", "norm", ("w",), False, Native(f"{name}.q_norm")),
        Row(f"{name}.norm_k", "norm", ("w",), False, Native(f"{name}.k_norm")),
        *(_linear(f"{name}.{leaf}", "w", "w") for leaf in ("to_q", "to_k", "to_v", "to_out.0")),
    )


_BLOCK = (
    *_attention("attn1"),
    *_attention("attn2"),
    _linear("ff.net.0.proj", "4w", "w"),
    _linear("ff.net.2", "w", "4w"),
)
_TOP = (
    _linear("proj_in", "w", 128, "patchify_proj"),
    *(
        _linear(f"time_embed.{leaf}", "w", columns, f"adaln_single.{leaf}")
        for leaf, columns in (
            ("emb.timestep_embedder.linear_1", 256),
            ("emb.timestep_embedder.linear_2", "w"),
        )
    ),
    _linear("time_embed.linear", "6w", "w", "adaln_single.linear"),
    _linear("caption_projection.linear_1", "w", 4096),
    _linear("caption_projection.linear_2", "w", "w"),
    _linear("proj_out", 128, "w"),
)


def ltx_video(name: str, title: str, *, width: int, blocks: int, also: tuple[str, ...]) -> Family:
    """Make a family of one size.

    Args:
        width, blocks: of the transformer.
        also: what programs call it in headers; no trainer of kohya's line trains it.
    """
    names = "transformer_blocks.{}."
    stacks = (Stack("", "", (0,), _TOP), Stack(names, names, range(blocks), _BLOCK))
    sizes = {"w": width, "4w": 4 * width, "6w": 6 * width}
    return Family(
        name=name,
        title=title,
        task="text-to-video",
        gguf="ltxv",
        build=lambda: (Component("transformer", tuple(expand(stacks, sizes))),),
        spellings={"transformer": transformer_spellings("original", native_slots(stacks))},
        metadata=Metadata(None, None, also=also),
        verified="diffusers model on the meta device, names and shapes; its converters of files",
        classes={"transformer": "LTXVideoTransformer3DModel"},
        heads=heads(stacks),
        probes=(
            *(f"transformer_blocks.0.attn{n}.to_{x}" for n in (1, 2) for x in "qk"),
            "transformer_blocks.0.ff.net.2",
        ),
        sign=r"(?<!\d[._])transformer_blocks[._]\d+[._](?:attn[12]|ff)[._]|patchify_proj",
        one_alpha=False,
        programs={"comfyui": "comfyui"},
    )
