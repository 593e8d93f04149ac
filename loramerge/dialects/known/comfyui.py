"""ComfyUI's and ai-toolkit's keys: the original's names after `diffusion_model.`.

Text encoders have the names they have in ComfyUI's files that hold a whole pipeline. Scales are folded
into the factors, as ai-toolkit does, so that every program reads the same change.
"""

from __future__ import annotations

from collections.abc import Iterator

from loramerge.dialects.native import NETWORK, native_names, spell_native, tensor_stem
from loramerge.dialects.spec import Dialect, Form, Modules
from loramerge.dialects.spelling import both, short_path
from loramerge.dialects.suffixes import ORIGINAL, PEFT_FIRST
from loramerge.families import Family

__all__ = ["DIALECT"]

_NAME = "comfyui"
_NETWORK, _ENCODERS = "diffusion_model.", "text_encoders."
_MAGNITUDE = {"magnitude": (".lora_magnitude_vector", ".lora_magnitude_vector.weight")}


def _network(family: Family, component: str) -> tuple[str, ...]:
    if component not in NETWORK and component != "unet":
        return ()
    return family.prefixes.get(_NAME, {}).get(component, (_NETWORK,))


def _encoders(family: Family, modules: Modules) -> Iterator[tuple[str, str]]:
    for component, module in modules:
        spelling = next(
            (s for s in family.spellings[component] if s.prefix.startswith(_ENCODERS)), None
        )
        slot = spelling.slot(module, "weight") if spelling else None
        if spelling is None:
            for prefix in family.prefixes.get(_NAME, {}).get(component, ()):
                yield prefix + module.path, f"{component}.{module.path}"
        elif slot:
            name = f"{component}.{module.path}"
            stem = spelling.prefix + tensor_stem(slot.tensor)
            yield stem, name
            # OneTrainer names modules as transformers does, in some of its versions
            for path in (module.path, short_path(family, component, module)):
                if path is not None and spelling.prefix + path != stem:
                    yield spelling.prefix + path, name


def _of_diffusers(family: Family, modules: Modules) -> Iterator[tuple[str, str]]:
    """Yield diffusers' names after the prefix, where the original has none that is called so."""
    known = list(modules)
    taken = {name for _, name, _ in native_names(family, known)}
    taken |= set(family.renamed.get(_NAME, {}).values())
    for component, module in known:
        if component == "transformer" and module.path not in taken:
            yield _NETWORK + module.path, f"{component}.{module.path}"


DIALECT = Dialect(
    name=_NAME,
    title="ComfyUI and ai-toolkit: the original's names after `diffusion_model.`",
    example="diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight",
    order=5,
    forms=(
        Form(
            both(spell_native(_network, dialect="comfyui"), _encoders),
            {**PEFT_FIRST, **ORIGINAL, "set_weight": (".set_weight",)},
            ("lycoris",),
        ),
        # as SimpleTuner writes them for ComfyUI where it does not know the original's names
        Form(
            _of_diffusers, {**PEFT_FIRST, "alpha": ORIGINAL["alpha"], **_MAGNITUDE}, written=False
        ),
        # of SimpleTuner's DoRA, and of PEFT's keys that got this prefix
        Form(spell_native(_network, dialect="comfyui"), _MAGNITUDE, written=False),
    ),
    # diffusers and InvokeAI ignore or refuse an alpha beside these names, ComfyUI needs none
    alpha="none",
    prefixes={
        _NETWORK: "transformer",
        "conditional_transformer.": "transformer",  # Ideogram 4's
        "text_embedding_projection.": "connectors",  # LTX-2's
        _ENCODERS: "text_encoders",
    },
    writable="any module of a known diffusion transformer",
)
