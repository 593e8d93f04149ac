"""LTX-2 and 2.3: blocks of a video and an audio stream, with diffusers' and Lightricks' names.

The modules are those of both versions. 2.3 gates its attention, modulates the text and has no
projections of captions; 2 has these, and narrower modulation. An adapter of the video's layers
alone may also be one of LTX-Video 13B, whose layers have the same names and shapes. Tables of
modulation are not layers and are left alone, and so is the text encoder. Of the connectors between
it and the transformer, the first layer is covered, which distilled adapters of LTX-2 change; others
are matched by name.

Source of the names: diffusers' `LTX2VideoTransformer3DModel`, the original single file as
diffusers' `convert_ltx2_transformer_to_diffusers` reads it, of the connectors diffusers'
`LTX2TextConnectors` and its converter of adapters, and for 2.3 ai-toolkit's
`convert_ltx2_to_diffusers.py`.
"""

from __future__ import annotations

from loramerge.families.spec import (
    Component,
    Family,
    Metadata,
    Module,
    Parameter,
    Slot,
    Spelling,
    plain_slot,
)
from loramerge.families.stacks import (
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

# the attention of a block → the stream it changes, and the one that it looks at
_ATTENTION = {
    "attn1": ("v", "v"),
    "audio_attn1": ("a", "a"),
    "attn2": ("v", "v"),
    "audio_attn2": ("a", "a"),
    "audio_to_video_attn": ("v", "a"),
    "video_to_audio_attn": ("a", "v"),
}
# module of modulation → its original name, the stream, and its height in widths of the stream
_MODULATION = {
    "time_embed": ("adaln_single", "v", 9),
    "audio_time_embed": ("audio_adaln_single", "a", 9),
    "av_cross_attn_video_scale_shift": ("av_ca_video_scale_shift_adaln_single", "v", 4),
    "av_cross_attn_audio_scale_shift": ("av_ca_audio_scale_shift_adaln_single", "a", 4),
    "av_cross_attn_video_a2v_gate": ("av_ca_a2v_gate_adaln_single", "v", 1),
    "av_cross_attn_audio_v2a_gate": ("av_ca_v2a_gate_adaln_single", "a", 1),
    "prompt_adaln": ("prompt_adaln_single", "v", 2),
    "audio_prompt_adaln": ("audio_prompt_adaln_single", "a", 2),
}
_WIDTHS = {"v": 4096, "a": 2048}


def _attention(name: str, stream: str, seen: str) -> tuple[Row, ...]:
    """Between the streams, attention has the width of the audio."""
    inner = "v" if stream == seen == "v" else "a"
    return (
        norm(f"{name}.norm_q", inner, f"{name}.q_norm"),
        norm(f"{name}.norm_k", inner, f"{name}.k_norm"),
        linear(f"{name}.to_q", inner, stream),
        linear(f"{name}.to_k", inner, seen),
        linear(f"{name}.to_v", inner, seen),
        linear(f"{name}.to_out.0", stream, inner),
        linear(f"{name}.to_gate_logits", 32, stream),
    )


def _modulation(name: str, native: str, stream: str, height: int) -> tuple[Row, ...]:
    embedder = "emb.timestep_embedder.linear"
    return (
        linear(f"{name}.{embedder}_1", stream, 256, f"{native}.{embedder}_1"),
        linear(f"{name}.{embedder}_2", stream, stream, f"{native}.{embedder}_2"),
        linear(f"{name}.linear", f"{height}{stream}", stream, f"{native}.linear"),
    )


def _of_a_stream(stream: str, head: str) -> tuple[Row, ...]:
    return (
        linear(f"{head}proj_in", stream, 128, f"{head}patchify_proj"),
        linear(f"{head}caption_projection.linear_1", stream, 3840),
        linear(f"{head}caption_projection.linear_2", stream, stream),
        linear(f"{head}proj_out", 128, stream),
    )


_TOP = (
    *_of_a_stream("v", ""),
    *_of_a_stream("a", "audio_"),
    *(row for name, known in _MODULATION.items() for row in _modulation(name, *known)),
)
_BLOCK = (
    *(row for name, streams in _ATTENTION.items() for row in _attention(name, *streams)),
    linear("ff.net.0.proj", "4v", "v"),
    linear("ff.net.2", "v", "4v"),
    linear("audio_ff.net.0.proj", "4a", "a"),
    linear("audio_ff.net.2", "a", "4a"),
)
_BLOCKS = "transformer_blocks.{}."
_STACKS = (Stack("", "", (0,), _TOP), Stack(_BLOCKS, _BLOCKS, range(48), _BLOCK))
_SIZES = {f"{n or ''}{s}": (n or 1) * w for s, w in _WIDTHS.items() for n in (0, 1, 2, 4, 9)}

_CONNECTORS = "text_embedding_projection."
_CAPTION = 3840  # width of the text encoder, whose 49 layers are put together


def _connector(module: Module, parameter: Parameter) -> Slot:
    return Slot(f"aggregate_embed.{parameter}")


FAMILY = Family(
    name="ltx-2",
    title="LTX-2 and 2.3",
    task="text-to-video",
    build=lambda: (
        Component("transformer", tuple(expand(_STACKS, _SIZES))),
        Component(
            "connectors", (Module("text_proj_in", "linear", (_CAPTION, 49 * _CAPTION), False),)
        ),
    ),
    spellings={
        "transformer": transformer_spellings("original", native_slots(_STACKS)),
        "connectors": (
            Spelling("original", _CONNECTORS, _connector),
            Spelling("diffusers", "", plain_slot),
        ),
    },
    metadata=Metadata(None, None, also=("ltx2", "ltx-2", "ltxv2", "ltx_2")),
    verified="diffusers model on the meta device, names and shapes; its converters of files",
    classes={"transformer": "LTX2VideoTransformer3DModel", "connectors": "LTX2TextConnectors"},
    prefixes={name: {"connectors": (_CONNECTORS,)} for name in ("comfyui", "bare")},
    heads=heads(_STACKS),
    probes=(
        *(f"transformer_blocks.0.{name}.to_{x}" for name in _ATTENTION for x in "qk"),
        "transformer_blocks.0.ff.net.2",
    ),
    sign=r"(?<!\d[._])transformer_blocks[._]\d+[._](?:attn|ff|audio|video)|patchify_proj|adaln",
    sizes=({9 * w: 6 * w for w in _WIDTHS.values()},),  # the modulation of 2
    twins=("SANA-WM's refiner",),
    common_dialect="comfyui",
    one_alpha=False,
    programs={"comfyui": "comfyui"},
)
