"""PEFT's folders: adapter_config.json beside adapter_model.safetensors, one folder per component.

A lone file with the same keys, as other programs write and read them, is read as if its alphas were its
ranks, and may be written as such a file again. Those of language models may be written for llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable

from loramerge.dialects.native import NETWORK, spell_native
from loramerge.dialects.spec import Dialect, Form
from loramerge.dialects.spelling import COMPONENTS, path, prefixes, short_path, spell
from loramerge.dialects.suffixes import PEFT
from loramerge.families import Family, Module
from loramerge.families.levels import without_text_model
from loramerge.records import replaced

__all__ = ["DIALECT"]

_HEAD = "base_model.model."
# components that a folder without sub-folders may be of
_ALONE = ("unet", "transformer", "text_encoder")


def _usual(component: str) -> tuple[str, ...]:
    return (f"{component}/{_HEAD}", *((_HEAD,) if component in _ALONE else ()))


def _transformers_path(family: Family, component: str, module: Module) -> str:
    """Return the path in today's models, which PEFT matches exactly: `CLIPTextModel` has lost a level.

    `CLIPTextModelWithProjection` has kept it.
    """
    lost = family.classes.get(component) == "CLIPTextModel"
    return without_text_model(module.path) if lost else module.path


def _without_folder(component: str) -> tuple[str, ...]:
    return (_HEAD,) if component in _ALONE else ()


def _form(usual: Callable[[str], tuple[str, ...]]) -> Form:
    return Form(
        spell(prefixes("peft", usual), _transformers_path, path, short_path),
        {
            **PEFT,
            "set_weight": (".weight",),
            "set_bias": (".bias", ".base_layer.bias"),
            "base_weight": (".base_layer.weight",),
        },
        ("peft-lora", "peft"),
    )


def _network(family: Family, component: str) -> tuple[str, ...]:
    return _usual(component) if component in NETWORK else ()


# original names of trainers that wrap the original network, as ACE-Step's does
_ORIGINALS = Form(spell_native(_network), PEFT, written=False)

_FOLDER = Dialect(
    name="peft",
    title="PEFT folder (adapter_config.json + adapter_model.safetensors)",
    example="base_model.model.down_blocks.0.….attn1.to_q.lora_A.weight",
    order=3,
    forms=(_form(_usual), _ORIGINALS),
    alpha="config",
    prefixes={_HEAD: "", **{f"{name}/{_HEAD}": name for name in COMPONENTS}},
    writable="low-rank deltas; one sub-folder per component where there are several",
    programs=("peft",),
    container="peft",
    folder=True,
    alone=frozenset(_ALONE),
    embeddings=None,
)
DIALECT = replaced(
    _FOLDER,
    one_file=replaced(
        _FOLDER,
        forms=(_form(_without_folder),),
        alpha="none",
        writable="low-rank deltas of one component",
        container="plain",
        folder=False,
    ),
    in_gguf=replaced(
        _FOLDER,
        writable="low-rank deltas of a language model that llama.cpp knows",
        container="gguf",
        folder=False,
    ),
)
