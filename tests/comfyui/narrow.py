"""A Stable Diffusion of a few narrow blocks: its family, a checkpoint, and adapters for it.

It is named and wired as SD 1.x, so ComfyUI builds it from a checkpoint of the usual names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.families.clip import Clip, clip_modules
from loramerge.families.spec import Family, Metadata
from loramerge.families.stable_diffusion import stable_diffusion
from loramerge.families.unet import Unet, ldm_name, unet_modules
from tests.builders.bases import make_weights, write_safetensors

Array = np.ndarray[Any, Any]
UNET = Unet((32, 64), (1, 1), 1, 64, linear_projection=False, layers=1)
CLIP = Clip(width=64, layers=2, vocabulary=60)
WORDS_IN_COMFYUI = 49408  # of its tokeniser
HEADS = 8  # of the denoiser's attention


def family_of(words: int = CLIP.vocabulary) -> Family:
    """Return the family with a vocabulary of a number of words."""
    return stable_diffusion(
        "narrow",
        "a narrow Stable Diffusion for tests",
        UNET,
        {"text_encoder": replace(CLIP, vocabulary=words)},
        layout="ldm",
        stored={"text_encoder": "cond_stage_model.transformer."},
        metadata=Metadata("narrow", "narrow"),
        prefixes={"kohya": {"text_encoder": ("lora_te_", "lora_te1_")}},
        shapes_only=True,
        order=-2,
    )


FAMILY = family_of()
MODULES = {f"unet.{m.path}": m for m in unet_modules(UNET)} | {
    f"text_encoder.{m.path}": m for m in clip_modules(CLIP)
}
_WORDS = "text_encoder.text_model.embeddings.token_embedding"


def write_checkpoint(
    path: Path, dtype: str = "F16", seed: int = 0, *, words: int = CLIP.vocabulary
) -> None:
    """Write a single file as CompVis' code stores it, without a VAE."""
    found = {}
    modules = MODULES | {_WORDS: MODULES[_WORDS]._replace(shape=(words, CLIP.width))}
    for name, array in make_weights(modules, dtype, seed, 0.05).items():
        component, _, path_ = name.partition(".")
        module, _, parameter = path_.rpartition(".")
        if MODULES[name.rpartition(".")[0]].layer == "norm" and parameter == "weight":
            array = np.ones_like(array)
        stored = (
            f"model.diffusion_model.{ldm_name(module, UNET)}.{parameter}"
            if component == "unet"
            else f"cond_stage_model.transformer.{path_}"
        )
        found[stored] = array
    write_safetensors(path, found, {"format": "pt"})


def adapter_tensors(
    rank: int, seed: int, *, only: str = "", dtype: str = "float32"
) -> Mapping[str, Array]:
    """Return a LoRA in kohya's names on the attention of all blocks, or of those that match."""
    random = np.random.default_rng(seed)
    found = {}
    for name, module in MODULES.items():
        component, _, path = name.partition(".")
        if module.layer == "norm" or ("attn" not in path and "proj_in" not in path):
            continue
        if not re.search(only, name):
            continue
        shape = module.shape
        tail = (1,) * (len(shape) - 2)
        key = f"{'lora_unet' if component == 'unet' else 'lora_te'}_{path.replace('.', '_')}"
        down = 0.1 * random.standard_normal((rank, *shape[1:]))
        up = 0.1 * random.standard_normal((shape[0], rank, *tail))
        found |= {
            f"{key}.lora_down.weight": down.astype(dtype),
            f"{key}.lora_up.weight": up.astype(dtype),
            f"{key}.alpha": np.array(rank / 2, dtype),
        }
    return found


def write_adapter(path: Path, rank: int, seed: int, **more: Any) -> None:
    """Write such an adapter, see `adapter_tensors`."""
    write_safetensors(path, adapter_tensors(rank, seed, **more), {"ss_network_module": "lora"})
