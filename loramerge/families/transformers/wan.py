"""Wan 2.1 and 2.2, VACE, Animate and S2V: the video transformer with diffusers' and its own names.

The modules are those of the 14B networks, image conditioning included, of VACE's blocks beside them, of
Animate's face adapter and of S2V's layers for audio; smaller networks (1.3B, 5B) have fewer blocks of
the same names and are matched by these, with sizes of their own. Distilled adapters change the
modulation tables, too. The 14B pipelines of 2.2 have two such networks, in diffusers `transformer` for
the first, noisy steps and `transformer_2` for the last; the original has them in files of their own. The
text encoder is umT5-XXL.
The encoders of faces and motion of Animate are not covered.

Source of the names: diffusers' `WanTransformer3DModel`, `WanVACETransformer3DModel` and
`WanAnimateTransformer3DModel` (verified), and the original single files as diffusers'
`convert_wan_transformer_to_diffusers` reads them (verified by conversion). Of S2V, of which diffusers
has no class: ComfyUI's `WanModel_S2V`, which has the original's names.
"""

from __future__ import annotations

from loramerge.families.encoders import t5_spellings
from loramerge.families.spec import Component, Family, Metadata, Spelling, plain_slot
from loramerge.families.stacks import (
    Native,
    Row,
    Stack,
    expand,
    fused,
    heads,
    linear,
    native_slots,
    norm,
    same,
    transformer_spellings,
)
from loramerge.families.t5 import T5, t5_modules

__all__ = ["FAMILY"]

_TOP = (
    Row("patch_embedding", "conv", ("w", "channels", 1, 2, 2), True, Native("patch_embedding")),
    Row("condition_embedder.time_embedder.linear_1", "linear", ("w", 256), True,
        Native("time_embedding.0")),
    Row("condition_embedder.time_embedder.linear_2", "linear", ("w", "w"), True,
        Native("time_embedding.2")),
    Row("condition_embedder.time_proj", "linear", ("6w", "w"), True, Native("time_projection.1")),
    Row("condition_embedder.text_embedder.linear_1", "linear", ("w", 4096), True,
        Native("text_embedding.0")),
    Row("condition_embedder.text_embedder.linear_2", "linear", ("w", "w"), True,
        Native("text_embedding.2")),
    Row("condition_embedder.image_embedder.norm1", "norm", ("image",), True,
        Native("img_emb.proj.0")),
    Row("condition_embedder.image_embedder.ff.net.0.proj", "linear", ("image", "image"), True,
        Native("img_emb.proj.1")),
    Row("condition_embedder.image_embedder.ff.net.2", "linear", ("w", "image"), True,
        Native("img_emb.proj.3")),
    Row("condition_embedder.image_embedder.norm2", "norm", ("w",), True,
        Native("img_emb.proj.4")),
)  # fmt: skip


def _attention(name: str, native: str) -> tuple[Row, ...]:
    return (
        *(
            Row(f"{name}.{ours}", "linear", ("w", "w"), True, Native(f"{native}.{theirs}"))
            for ours, theirs in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))
        ),
        Row(f"{name}.norm_q", "norm", ("w",), False, Native(f"{native}.norm_q")),
        Row(f"{name}.norm_k", "norm", ("w",), False, Native(f"{native}.norm_k")),
    )


def _table(name: str, *dims: str | int) -> Row:
    return Row(name, "matrix", dims, False, Native(name, weight=""))


_OF_IMAGES = (
    Row("attn2.add_k_proj", "linear", ("w", "w"), True, Native("cross_attn.k_img")),
    Row("attn2.add_v_proj", "linear", ("w", "w"), True, Native("cross_attn.v_img")),
    Row("attn2.norm_added_k", "norm", ("w",), False, Native("cross_attn.norm_k_img")),
)
_PLAIN = (
    *_attention("attn1", "self_attn"),
    *_attention("attn2", "cross_attn"),
    Row("norm2", "norm", ("w",), True, Native("norm3")),
    Row("ffn.net.0.proj", "linear", ("hidden", "w"), True, Native("ffn.0")),
    Row("ffn.net.2", "linear", ("w", "hidden"), True, Native("ffn.2")),
    Row("scale_shift_table", "matrix", (1, 6, "w"), False, Native("modulation", weight="")),
)

_VACE = (*_PLAIN, linear("proj_out", "w", "w", "after_proj"))
_FACE = (
    linear("to_q", "w", "w", "linear1_q"),
    *fused(("to_k", "to_v"), "w", "w", "linear1_kv"),
    linear("to_out", "w", "w", "linear2"),
    norm("norm_q", "head", "q_norm"),
    norm("norm_k", "head", "k_norm"),
)
_OF_AUDIO = (
    same("trainable_cond_mask", "embedding", (3, "w")),
    same("cond_encoder", "conv", ("w", 16, 1, 2, 2), bias=True),
    _table("casual_audio_encoder.weights", 1, 25, 1, 1),
    _table("casual_audio_encoder.encoder.padding_tokens", 1, 1, 1, "w"),
    *(
        same(f"casual_audio_encoder.encoder.{name}.conv", "conv", (rows, columns, 3), bias=True)
        for name, rows, columns in (
            ("conv1_local", "w", 1024),
            ("conv1_global", 1280, 1024),
            ("conv2", 2560, 1280),
            ("conv3", "w", 2560),
        )
    ),
    linear("casual_audio_encoder.encoder.final_linear", "w", "w"),
    *(
        same(f"frame_packer.proj{name}", "conv", ("w", 16, time, 2 * time, 2 * time), bias=True)
        for name, time in (("", 1), ("_2x", 2), ("_4x", 4))
    ),
)
_INJECTOR = (
    *(linear(x, "w", "w") for x in "qkvo"),
    norm("norm_q", "w"),
    norm("norm_k", "w"),
)
_LAST = (
    *(
        Row(name, "conv", ("w", channels, 1, 2, 2), True, Native(name))
        for name, channels in (("vace_patch_embedding", 96), ("pose_patch_embedding", 16))
    ),
    Row("proj_out", "linear", (64, "w"), True, Native("head.head")),
    Row("scale_shift_table", "matrix", (1, 2, "w"), False, Native("head.modulation", weight="")),
)
_INJECTORS = "audio_injector.injector.{}."
_MODULATIONS = "audio_injector.injector_adain_layers.{}."
_STACKS = (
    Stack("", "", (0,), _TOP),
    Stack("blocks.{}.", "blocks.{}.", range(40), (*_PLAIN, *_OF_IMAGES)),
    Stack("vace_blocks.{}.", "vace_blocks.{}.", range(15), _VACE),
    Stack(
        "vace_blocks.{}.", "vace_blocks.{}.", (0,), (linear("proj_in", "w", "w", "before_proj"),)
    ),
    Stack("face_adapter.{}.", "face_adapter.fuser_blocks.{}.", range(8), _FACE),
    Stack("", "", (0,), (*_OF_AUDIO, *_LAST)),
    Stack(_INJECTORS, _INJECTORS, range(12), _INJECTOR),
    Stack(_MODULATIONS, _MODULATIONS, range(12), (linear("linear", "2w", "w"),)),
)
_SIZES = {
    "w": 5120, "2w": 2 * 5120, "6w": 6 * 5120, "hidden": 13824, "image": 1280, "channels": 36,
    "head": 128,
}  # fmt: skip
_OF_1_3B = {5120: 1536, 6 * 5120: 6 * 1536, 13824: 8960}
_FROM_TEXT = {36: 16}  # the channels of networks that see no image


def _build() -> tuple[Component, ...]:
    transformer = Component("transformer", tuple(expand(_STACKS, _SIZES)))
    return (
        transformer,
        Component("text_encoder", tuple(t5_modules(T5(vocabulary=256384, biased=True)))),
        Component("transformer_2", transformer.modules, second_of="transformer"),
    )


FAMILY = Family(
    name="wan",
    title="Wan 2.1 and 2.2, VACE, Animate, S2V",
    task="text-to-video",
    gguf="wan",
    build=_build,
    spellings={
        "transformer": transformer_spellings("original", native_slots(_STACKS)),
        "text_encoder": t5_spellings("text_encoders.umt5xxl.transformer."),
        "transformer_2": (Spelling("diffusers", "", plain_slot),),
    },
    metadata=Metadata("wan2.1", "wan", "networks.lora_wan"),
    verified="diffusers and transformers models on the meta device, names and shapes; of S2V, "
    "ComfyUI's model",
    classes={
        "transformer": "WanTransformer3DModel",
        "text_encoder": "UMT5EncoderModel",
        "transformer_2": "WanTransformer3DModel",
    },
    prefixes={
        "kohya": {"text_encoder": ("lora_te_",)},  # OneTrainer's
        "onetrainer": {"text_encoder": ("lora_te_", "t5.")},
        # without a folder's name it is an adapter of the language model, and of no family
        "peft": {"text_encoder": ("text_encoder/base_model.model.",)},
    },
    heads=heads(_STACKS),
    marks={"onetrainer": ("t5.",)},
    probes=(
        "blocks.0.attn1.to_q",
        "blocks.0.attn2.to_k",
        "blocks.0.ffn.net.2",
        "encoder.block.0.layer.0.SelfAttention.q",
    ),
    sizes=(
        _FROM_TEXT,
        _OF_1_3B,
        _OF_1_3B | _FROM_TEXT,
        {5120: 3072, 6 * 5120: 6 * 3072, 13824: 14336, 64: 192, 36: 48},  # 5B of 2.2
    ),
    twins=("ChronoEdit", "AnyFlow", "Helios"),
    one_alpha=False,
    programs={"comfyui": "comfyui"},
)
