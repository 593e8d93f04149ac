"""The dialects, each one literal.

Stems are generated from a family's module names; `_spell` turns a spelling of paths and prefixes
into the generator a form wants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter

from loramerge.dialects.native import NETWORK, spell_native
from loramerge.dialects.spec import Dialect, Form, Fused, Modules, Stems
from loramerge.families import Family, Module
from loramerge.families.levels import without_language_model, without_text_model

__all__ = [
    "DIFFUSERS",
    "DIFFUSERS_LEGACY",
    "KOHYA",
    "LORA_DIFFUSION",
    "LYCORIS",
    "PEFT",
    "PEFT_ALONE",
    "positions",
]

Prefixes = Callable[[Family, str], tuple[str, ...]]
Path = Callable[[Family, str, Module], str | None]


def _spell(prefixes: Prefixes, *paths: Path) -> Stems:
    """Make a generator of stems: each prefix before each spelling of each module's path."""

    def stems(family: Family, modules: Modules) -> Iterator[tuple[str, str]]:
        for component, group in groupby(modules, itemgetter(0)):
            heads = prefixes(family, component)
            for _, module in group if heads else ():
                name = f"{component}.{module.path}"
                spelled = [path(family, component, module) for path in paths]
                for head in heads:
                    for one in spelled:
                        if one is not None:
                            yield head + one, name

    return stems


def _fixed(table: Mapping[str, tuple[str, ...]]) -> Prefixes:
    return lambda _family, component: table.get(component, ())


def _path(family: Family, component: str, module: Module) -> str:
    return module.path


def _short_path(family: Family, component: str, module: Module) -> str | None:
    """The spelling without a level that a version of transformers puts into a text encoder."""
    short = without_language_model(without_text_model(module.path))
    return short if short != module.path else None


# --- kohya -------------------------------------------------------------------------------------

_KOHYA_PREFIXES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "sd15": {"text_encoder": ("lora_te_", "lora_te1_")},
    "sd21": {"text_encoder": ("lora_te_", "lora_te1_")},
    "sdxl-refiner": {"text_encoder_2": ("lora_te_", "lora_te1_", "lora_te2_")},
    "flux1": {"text_encoder_2": ("lora_te3_", "lora_te2_")},  # T5, the second OneTrainer's
    "wan": {"text_encoder": ("lora_te_",)},  # OneTrainer's
    "qwen-image": {"text_encoder": ()},  # no trainer has written any
}
_KOHYA_DEFAULT: Mapping[str, tuple[str, ...]] = {
    "unet": ("lora_unet_",),
    "text_encoder": ("lora_te1_",),
    "text_encoder_2": ("lora_te2_",),
    "text_encoder_3": ("lora_te3_",),
    "transformer": ("lora_unet_", "lora_unet__"),
}


def _kohya_prefixes(family: Family, component: str) -> tuple[str, ...]:
    own = _KOHYA_PREFIXES.get(family.name, {})
    return own.get(component, _KOHYA_DEFAULT.get(component, ()))


def _flat(family: Family, component: str, module: Module) -> str:
    return module.path.replace(".", "_")


def _flat_short(family: Family, component: str, module: Module) -> str | None:
    short = _short_path(family, component, module)
    return None if short is None else short.replace(".", "_")


def _flat_sgm(family: Family, component: str, module: Module) -> str | None:
    """The UNet's name in a single file, which kohya uses for SDXL."""
    if component != "unet" or not family.name.startswith("sdxl"):
        return None
    slot = family.spellings["unet"][0].slot(module, "weight")
    assert slot is not None
    return slot.tensor.removesuffix(".weight").replace(".", "_")


def _kohya_native(family: Family, component: str) -> tuple[str, ...]:
    return _KOHYA_DEFAULT["transformer"] if component in NETWORK else ()


def _kohya(family: Family, modules: Modules) -> Iterator[tuple[str, str | Fused]]:
    """Diffusion transformers by the original's names, fused as it is; diffusers' are read, too."""
    known = list(modules)
    yield from spell_native(_kohya_native, flat=True)(family, known)
    yield from _spell(_kohya_prefixes, _flat_sgm, _flat, _flat_short)(family, known)


_MANGLED = {"unet": ("lora_unet_unet_",)}

KOHYA = Dialect(
    name="kohya",
    title="kohya-ss sd-scripts (A1111, Forge, ComfyUI)",
    example="lora_unet_down_blocks_0_attentions_0_…_attn1_to_q.lora_down.weight",
    forms=(
        Form(
            _kohya,
            {
                "up": (".lora_up.weight", ".lora_B.weight"),
                "down": (".lora_down.weight", ".lora_A.weight"),
                "alpha": (".alpha",),
                "diff": (".diff",),
                "diff_b": (".diff_b",),
                "w_norm": (".w_norm",),
                "b_norm": (".b_norm",),
            },
            containers=("lycoris",),
        ),
        Form(
            _spell(_fixed(_MANGLED), _flat),
            {"up": ("_lora_up.weight",), "down": ("_lora_down.weight",)},
        ),
    ),
    alpha="tensor",
    prefixes={
        "lora_unet_": "unet",
        "lora_te1_": "text_encoder",
        "lora_te_": "text_encoder",
        "lora_te2_": "text_encoder_2",
        "lora_te3_": "text_encoder_3",
    },
    loads_in=("A1111", "Forge", "ComfyUI", "diffusers", "InvokeAI", "kohya"),
    writable="any module of a known family",
)

# --- LyCORIS' own wrapper ------------------------------------------------------------------------

LYCORIS = Dialect(
    name="lycoris",
    title="LyCORIS' wrapper of a whole network, as SimpleTuner writes it",
    example="lycoris_transformer_blocks_0_attn_to_q.lokr_w1",
    forms=(
        Form(
            _spell(_fixed({"unet": ("lycoris_",), "transformer": ("lycoris_",)}), _flat),
            KOHYA.forms[0].suffixes,
            containers=("lycoris",),
        ),
    ),
    alpha="tensor",
    prefixes={"lycoris_": ""},
    loads_in=("ComfyUI", "SimpleTuner"),
    writable="any module of a known UNet or diffusion transformer",
)

# --- diffusers ---------------------------------------------------------------------------------

_COMPONENTS = (
    "unet", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "text_conditioner",
)  # fmt: skip
_DOTTED = {name: (f"{name}.",) for name in _COMPONENTS}
_DOTTED_PREFIXES = {f"{name}.": name for name in _COMPONENTS}
_PEFT_SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "down": (".lora_A.weight", ".lora_A.default.weight"),
    "up": (".lora_B.weight", ".lora_B.default.weight"),
}

DIFFUSERS = Dialect(
    name="diffusers",
    title="diffusers with PEFT keys",
    example="unet.down_blocks.0.….attn1.to_q.lora_A.weight",
    forms=(
        Form(
            _spell(_fixed(_DOTTED), _path, _short_path),
            {
                **_PEFT_SUFFIXES,
                "down": (*_PEFT_SUFFIXES["down"], ".lora_down.weight"),
                "up": (*_PEFT_SUFFIXES["up"], ".lora_up.weight"),
                "alpha": (".alpha",),
            },
            containers=("peft-lora",),
        ),
    ),
    alpha="header",
    prefixes=_DOTTED_PREFIXES,
    loads_in=("diffusers", "ComfyUI", "InvokeAI"),
    writable="low-rank deltas of any module of a known family",
)

# --- diffusers before PEFT ---------------------------------------------------------------------

_PROCESSOR_LEAVES = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out"}
_ENCODER_LEAVES = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def _processor(family: Family, component: str, module: Module) -> str | None:
    """`….attn1.processor.to_q_lora`, and `….self_attn.to_q_lora` in text encoders."""
    leaves = _PROCESSOR_LEAVES if component == "unet" else _ENCODER_LEAVES
    middle = ".processor." if component == "unet" else "."
    for leaf, spelled in leaves.items():
        if module.path.endswith("." + leaf):
            return f"{module.path[: -len(leaf) - 1]}{middle}{spelled}_lora"
    return None


_BARE_UNET = {"unet": ("unet.", "")}
_ENCODERS = {name: (f"{name}.",) for name in _COMPONENTS if name.startswith("text_encoder")}

DIFFUSERS_LEGACY = Dialect(
    name="diffusers-legacy",
    title="diffusers before PEFT (attention processors, `.lora.down`)",
    example="unet.down_blocks.0.….attn1.to_q.lora.down.weight",
    forms=(
        Form(
            _spell(_fixed(_BARE_UNET), _path),
            {"down": (".lora.down.weight",), "up": (".lora.up.weight",)},
        ),
        Form(
            _spell(_fixed(_ENCODERS), _path, _short_path),
            {
                "down": (".lora_linear_layer.down.weight", ".lora.down.weight"),
                "up": (".lora_linear_layer.up.weight", ".lora.up.weight"),
            },
        ),
        Form(
            _spell(_fixed({**_BARE_UNET, **_ENCODERS}), _processor),
            {"down": (".down.weight",), "up": (".up.weight",)},
        ),
    ),
    alpha="none",
    prefixes=_DOTTED_PREFIXES,
    loads_in=("diffusers",),
    writable="linear low-rank deltas of any module of a known family",
)

# --- PEFT folder -------------------------------------------------------------------------------


def _transformers_path(family: Family, component: str, module: Module) -> str:
    """The path in today's models, which PEFT matches exactly: `CLIPTextModel` has lost a level.

    `CLIPTextModelWithProjection`, the second text encoder, has kept it.
    """
    return without_text_model(module.path) if component == "text_encoder" else module.path


_PEFT_HEAD = "base_model.model."
_PEFT_PREFIXES = {
    "unet": (f"unet/{_PEFT_HEAD}", _PEFT_HEAD),
    "transformer": (f"transformer/{_PEFT_HEAD}", _PEFT_HEAD),
    "text_encoder": (f"text_encoder/{_PEFT_HEAD}", _PEFT_HEAD),
    "text_encoder_2": (f"text_encoder_2/{_PEFT_HEAD}",),
    "text_encoder_3": (f"text_encoder_3/{_PEFT_HEAD}",),
    "text_conditioner": (f"text_conditioner/{_PEFT_HEAD}",),
}


def _peft_prefixes(family: Family, component: str) -> tuple[str, ...]:
    """Adapters of language models, which a text encoder may be, are of no family for that."""
    heads = _PEFT_PREFIXES.get(component, ())
    of_language = family.name in ("wan", "qwen-image") and component == "text_encoder"
    return tuple(head for head in heads if head != _PEFT_HEAD) if of_language else heads


# Components that a folder without sub-folders can be read back as.
PEFT_ALONE = frozenset(name for name, heads in _PEFT_PREFIXES.items() if _PEFT_HEAD in heads)

PEFT = Dialect(
    name="peft",
    title="PEFT folder (adapter_config.json + adapter_model.safetensors)",
    example="base_model.model.down_blocks.0.….attn1.to_q.lora_A.weight",
    forms=(
        Form(
            _spell(_peft_prefixes, _transformers_path, _path, _short_path),
            {**_PEFT_SUFFIXES, "set_weight": (".weight",), "set_bias": (".bias",)},
            containers=("peft-lora", "peft"),
        ),
    ),
    alpha="config",
    prefixes={_PEFT_HEAD: "", **{f"{name}/{_PEFT_HEAD}": name for name in _COMPONENTS}},
    loads_in=("PEFT",),
    writable="low-rank deltas; one sub-folder per component where there are several",
    folder=True,
)

# --- lora_diffusion ----------------------------------------------------------------------------

_POSITIONS_TRANSFORMER = (
    "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj",
    "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0",
)  # fmt: skip
_POSITIONS_ENCODER = ("k_proj", "v_proj", "q_proj", "out_proj")
_SECTIONS = ("down_blocks.", "up_blocks.", "mid_block.")


def positions(family: Family, component: str) -> list[str]:
    """Return the module paths of a component in lora_diffusion's order.

    The order is that of `named_modules` in diffusers ≤ 0.12 (down, up, then mid blocks), and in each
    transformer block attn1, the first half of the feed-forward, attn2; in CLIP k, v, q, out.
    Families other than SD1 and SD2 never had this dialect and give an empty list.
    """
    if family.name not in ("sd15", "sd21"):
        return []
    modules = next((c.modules for c in family.components if c.name == component), ())
    if component == "unet":
        blocks = [
            m.path.removesuffix(".norm1")
            for section in _SECTIONS
            for m in modules
            if m.path.startswith(section) and ".transformer_blocks." in m.path
            if m.path.endswith(".norm1")
        ]
        return [f"{block}.{leaf}" for block in blocks for leaf in _POSITIONS_TRANSFORMER]
    layers = [m.path.removesuffix(".q_proj") for m in modules if m.path.endswith(".q_proj")]
    return [f"{layer}.{leaf}" for layer in layers for leaf in _POSITIONS_ENCODER]


def _positional(family: Family, modules: Modules) -> Iterator[tuple[str, str]]:
    for component in dict.fromkeys(component for component, _ in modules):
        for index, path in enumerate(positions(family, component)):
            yield f"{component}:{index}", f"{component}.{path}"


LORA_DIFFUSION = Dialect(
    name="lora_diffusion",
    title="lora_diffusion of 2022 (cloneofsimo/lora)",
    example="unet:17:up",
    forms=(Form(_positional, {"up": (":up",), "down": (":down",)}),),
    alpha="none",
    prefixes={},
    loads_in=("lora_diffusion",),
    writable="low-rank deltas of the attention layers and ff.net.0.proj of SD1 and SD2",
)
