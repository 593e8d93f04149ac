"""The dialects of diffusion transformers, each one literal.

They differ in whose names they use (diffusers' or the original's), whether what the original stores
fused is one module or several, and whether an alpha stands beside the factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loramerge.dialects.native import NETWORK, native_names, spell_native, spell_parts
from loramerge.dialects.spec import Dialect, Form, Fused, Modules, Stems
from loramerge.families import Family
from loramerge.families.levels import without_language_model

__all__ = ["BARE", "COMFYUI", "ONETRAINER", "XLABS"]

_SD3 = ("sd3", "sd35-medium", "sd35-large")
_PLAIN: Mapping[str, tuple[str, ...]] = {
    "alpha": (".alpha",),
    "diff": (".diff",),
    "diff_b": (".diff_b",),
    "w_norm": (".w_norm",),
    "b_norm": (".b_norm",),
}
_PEFT_FIRST = {
    "up": (".lora_B.weight", ".lora_up.weight", ".lora_B.default.weight"),
    "down": (".lora_A.weight", ".lora_down.weight", ".lora_A.default.weight"),
    "up_bias": (".lora_B.bias",),
}
_KOHYA_FIRST = {name: (s[1], s[0]) for name, s in _PEFT_FIRST.items() if len(s) > 1}


def _paths(prefixes: Mapping[str, tuple[str, ...]], *, flat: bool = False) -> Stems:
    """Make a generator of stems: each prefix before the path of each module."""

    def stems(family: Family, modules: Modules) -> Iterator[tuple[str, str]]:
        for component, module in modules:
            path = module.path.replace(".", "_") if flat else module.path
            for prefix in prefixes.get(component, ()):
                yield prefix + path, f"{component}.{module.path}"

    return stems


def _both(*parts: Stems) -> Stems:
    """Chain generators of stems; what the first spells is written."""

    def stems(family: Family, modules: Modules) -> Iterator[tuple[str, str | Fused]]:
        known = list(modules)
        for part in parts:
            yield from part(family, known)

    return stems


# --- ComfyUI -----------------------------------------------------------------------------------

# family → component → the name ComfyUI gives a text encoder
_COMFYUI_SD3 = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
_COMFYUI_ENCODERS: Mapping[str, Mapping[str, str]] = {
    "flux1": {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"},
    "wan": {"text_encoder": "umt5xxl"},
    "qwen-image": {"text_encoder": "qwen25_7b"},
    **dict.fromkeys(_SD3, _COMFYUI_SD3),
}
_DIFFUSION_MODEL = ("diffusion_model.",)


def _comfyui_network(family: Family, component: str) -> tuple[str, ...]:
    return _DIFFUSION_MODEL if component in NETWORK else ()


def _comfyui_encoders(family: Family, modules: Modules) -> Iterator[tuple[str, str]]:
    names = _COMFYUI_ENCODERS.get(family.name, {})
    for component, module in modules:
        if component in names:
            head = f"text_encoders.{names[component]}.transformer."
            yield head + without_language_model(module.path), f"{component}.{module.path}"


COMFYUI = Dialect(
    name="comfyui",
    title="ComfyUI and ai-toolkit: the original's names after `diffusion_model.`",
    example="diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight",
    forms=(
        Form(
            _both(spell_native(_comfyui_network), _comfyui_encoders),
            {**_PEFT_FIRST, **_PLAIN, "set_weight": (".set_weight",)},
        ),
    ),
    alpha="tensor",
    prefixes={"diffusion_model.": "transformer", "text_encoders.": "text_encoders"},
    loads_in=("ComfyUI", "ai-toolkit", "Forge", "InvokeAI"),
    writable="any module of a known diffusion transformer",
)

# --- XLabs -------------------------------------------------------------------------------------

_XLABS_LEAVES = {
    "img_attn.qkv": "qkv_lora1",
    "txt_attn.qkv": "qkv_lora2",
    "img_attn.proj": "proj_lora1",
    "txt_attn.proj": "proj_lora2",
    "linear1": "qkv_lora",
    "linear2": "proj_lora",
}


def _xlabs(family: Family, modules: Modules) -> Iterator[tuple[str, Fused]]:
    """Attention processors: of `linear1` only queries, keys and values."""
    if family.name != "flux1":
        return
    for component, name, target in native_names(family, modules):
        sort, _, rest = name.partition(".")
        number, _, leaf = rest.partition(".")
        spelled = _XLABS_LEAVES.get(leaf)
        if component != "transformer" or spelled is None:
            continue
        if leaf == "linear1":
            target = Fused(target.modules[:3], target.spans[:3])
        for prefix in ("", *_DIFFUSION_MODEL):
            yield f"{prefix}{sort}.{number}.processor.{spelled}", target


XLABS = Dialect(
    name="xlabs",
    title="XLabs: attention processors of Flux",
    example="double_blocks.0.processor.qkv_lora1.down.weight",
    forms=(Form(_xlabs, {"up": (".up.weight",), "down": (".down.weight",)}),),
    alpha="none",
    prefixes={},
    marks=("double_blocks.", "single_blocks.", *_DIFFUSION_MODEL),
    loads_in=("XLabs", "ComfyUI", "diffusers", "InvokeAI"),
    writable="low-rank deltas of the attention of Flux (of linear1 without proj_mlp)",
)

# --- OneTrainer --------------------------------------------------------------------------------

_ONETRAINER_SD3 = {
    "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_", "text_encoder_3": "lora_te3_",
}  # fmt: skip
_ONETRAINER_ENCODERS: Mapping[str, Mapping[str, str]] = {
    "flux1": {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
    "wan": {"text_encoder": "lora_te_"},
    **dict.fromkeys(_SD3, _ONETRAINER_SD3),
}  # fmt: skip
_BFL = (
    "double_blocks.",
    "single_blocks.",
    "final_layer.",
    "time_in.",
    "vector_in.",
    "guidance_in.",
)


def _onetrainer_flat(family: Family, modules: Modules) -> Iterator[tuple[str, str]]:
    encoders = _ONETRAINER_ENCODERS.get(family.name, {})
    for component, module in modules:
        head = "lora_transformer_" if component == "transformer" else encoders.get(component)
        if head is not None:
            yield head + module.path.replace(".", "_"), f"{component}.{module.path}"


_ONETRAINER_NATIVE = ("flux1", *_SD3, "hunyuan-video")
_OMI_SD3 = {"text_encoder": "clip_l.", "text_encoder_2": "clip_g.", "text_encoder_3": "t5."}
_OMI_ENCODERS: Mapping[str, Mapping[str, str]] = {
    "flux1": {"text_encoder": "clip_l.", "text_encoder_2": "t5."},
    "wan": {"text_encoder": "t5."},
    **dict.fromkeys(_SD3, _OMI_SD3),
}


def _onetrainer_native(family: Family, component: str) -> tuple[str, ...]:
    named_so = family.name in _ONETRAINER_NATIVE and component == "transformer"
    return ("transformer.",) if named_so else ()


def _omi_encoders(family: Family, modules: Modules) -> Iterator[tuple[str, str]]:
    heads = _OMI_ENCODERS.get(family.name, {})
    for component, module in modules:
        if component in heads:
            yield heads[component] + module.path, f"{component}.{module.path}"


ONETRAINER = Dialect(
    name="onetrainer",
    title="OneTrainer: diffusers' names, split (or the original's names with numbered parts)",
    example="lora_transformer_single_transformer_blocks_0_attn_to_k.lora_down.weight",
    forms=(
        Form(_onetrainer_flat, {**_KOHYA_FIRST, **_PLAIN}),
        Form(
            _both(
                spell_parts(_onetrainer_native),
                spell_native(_onetrainer_native, aliases={"img_in": "img_in.proj"}),
                _omi_encoders,
            ),
            {**_KOHYA_FIRST, **_PLAIN},
        ),
    ),
    alpha="tensor",
    prefixes={"lora_transformer_": "transformer"},
    marks=(
        *(f"transformer.{name}" for name in (*_BFL, "img_in.proj", "txt_in.", "joint_blocks.")),
        *sorted({head for heads in _OMI_ENCODERS.values() for head in heads.values()}),
    ),
    loads_in=("OneTrainer", "ComfyUI", "InvokeAI"),
    writable="any module of a known diffusion transformer",
)

# --- bare --------------------------------------------------------------------------------------

_NATIVE_HEADS = (
    *_BFL,
    "img_in",
    "txt_in",
    "joint_blocks.",
    "x_embedder.",
    "t_embedder.",
    "y_embedder.",
    "blocks.",
    "patch_embedding",
    "time_embedding.",
    "text_embedding.",
    "time_projection.",
    "img_emb.",
    "head.",
    "double_stream_modulation_",
    "single_stream_modulation.",
    "layers.",
    "noise_refiner.",
    "context_refiner.",
    "cap_embedder.",
    "txt_in.",
    "patchify_proj",
    "adaln_single.",
    "llm_adapter.",
    "t_embedding_norm",
)
_DIFFUSERS_HEADS = (
    "transformer_blocks.", "single_transformer_blocks.", "time_text_embed.", "context_embedder",
    "x_embedder", "norm_out.", "proj_out", "pos_embed.", "txt_norm", "condition_embedder.",
    "time_guidance_embed.", "time_caption_embed.", "all_x_embedder.", "all_final_layer.",
    "time_embed.", "proj_in", "patch_embed.", "caption_projection.",
)  # fmt: skip


# `.scale` is the weight of a norm here, and replaces the base's
_UNSCALED = {role: suffixes for role, suffixes in _PLAIN.items() if role != "scale"}


def _bare(family: Family, component: str) -> tuple[str, ...]:
    return ("",) if component in NETWORK else ()


BARE = Dialect(
    name="bare",
    title="Dotted names without a prefix (BFL's control adapters, Lightning)",
    example="double_blocks.0.img_attn.qkv.lora_A.weight",
    forms=(
        Form(spell_native(_bare), {**_PEFT_FIRST, **_UNSCALED, "set_weight": (".scale",)}),
        Form(_paths({"transformer": ("",)}), {**_KOHYA_FIRST, **_UNSCALED}),
    ),
    alpha="tensor",
    prefixes={},
    marks=(*_NATIVE_HEADS, *_DIFFUSERS_HEADS),
    loads_in=("ComfyUI", "diffusers"),
    writable="any module of a known diffusion transformer",
)
