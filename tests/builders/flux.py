"""Adapters and bases of Flux, small, and what they mean, written without loramerge's tables.

`meaning` takes the keys of a file apart by hand and gives dense float64 differences by the names of
diffusers; the tables are checked against it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.adapter import Adapter
from tests.builders.samples import Array, safetensors_bytes

LISTINGS = {
    "invoke_flux_lora_aitoolkit_format": "comfyui",
    "invoke_flux_lora_diffusers_format": "diffusers",
    "invoke_flux_lora_kohya_with_te1_format": "kohya",
}
SPELLINGS = ("kohya", "comfyui", "diffusers", "onetrainer")
SHRINK = 96  # 3072 becomes 32, 768 becomes 8
Tensors = dict[str, Array]


def listing(data: Path, name: str) -> dict[str, list[int]]:
    """Key → shape of a real adapter."""
    content = json.loads((data / "listings" / f"{name}.json").read_text("utf-8"))
    return {key: shape for key, (shape, *_) in content["keys"].items()}


def filled(
    shapes: Mapping[str, list[int]], *, alpha: float = 3.0, dtype: Any = "float16"
) -> Tensors:
    """Seeded values for the keys of an adapter, of a network that is `SHRINK` times as narrow."""
    random = np.random.default_rng(11)
    return {
        key: random.standard_normal([n // SHRINK if n >= 768 else n for n in shape]).astype(dtype)
        if shape
        else np.array(alpha, dtype)
        for key, shape in shapes.items()
    }


def write(tensors: Tensors, path: Path, metadata: Mapping[str, str] = {}) -> Path:
    path.write_bytes(safetensors_bytes(tensors, metadata))
    return path


# --- what keys mean ----------------------------------------------------------------------------

_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
_TOP = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
LAST = "final_layer.adaLN_modulation.1"


def native_names() -> dict[str, tuple[str, ...]]:
    """Original name → modules by diffusers' names, in the order of their rows."""
    names: dict[str, tuple[str, ...]] = {native: (ours,) for native, ours in _TOP.items()}
    names[LAST] = ("norm_out.linear",)
    for i in range(19):
        names |= {
            f"double_blocks.{i}.{leaf}": tuple(f"transformer_blocks.{i}.{m}" for m in modules)
            for leaf, modules in _DOUBLE.items()
        }
    for i in range(38):
        names |= {
            f"single_blocks.{i}.{leaf}": tuple(
                f"single_transformer_blocks.{i}.{m}" for m in modules
            )
            for leaf, modules in _SINGLE.items()
        }
    return names


NATIVE = native_names()
FLAT = {name.replace(".", "_"): name for name in NATIVE}
MODULES = {module for modules in NATIVE.values() for module in modules}
FLAT_MODULES = {module.replace(".", "_"): module for module in MODULES}
_SUFFIX = re.compile(r"\.(lora_down\.weight|lora_up\.weight|lora_A\.weight|lora_B\.weight|alpha)$")


def parts_of(native: str, value: Array) -> dict[str, Array]:
    """Cut a matrix of the original network into the modules of diffusers."""
    modules = NATIVE[native]
    if native == LAST:
        half = value.shape[0] // 2
        return {f"transformer.{modules[0]}": np.concatenate([value[half:], value[:half]])}
    rows = value.shape[0] // (7 if len(modules) == 4 else len(modules))
    ends = [rows * (i + 1) for i in range(len(modules) - 1)]
    return {f"transformer.{m}": v for m, v in zip(modules, np.split(value, ends), strict=True)}


def placed(stem: str, value: Array) -> dict[str, Array]:
    """The modules that a stem of any spelling stands for, with their rows of a matrix."""
    for head, names in (
        ("lora_unet_", FLAT),
        ("diffusion_model.", dict(zip(NATIVE, NATIVE, strict=True))),
    ):
        if stem.startswith(head):
            return parts_of(names[stem.removeprefix(head)], value)
    if stem.startswith("lora_transformer_"):
        return {"transformer." + FLAT_MODULES[stem.removeprefix("lora_transformer_")]: value}
    if stem.startswith("transformer."):
        return {stem: value}
    path = re.sub(r"^lora_te1_|^text_encoders\.clip_l\.transformer\.|^text_encoder\.", "", stem)
    flat = re.sub(r"[._]", "_", path)
    flat = flat if flat.startswith("text_model_") else f"text_model_{flat}"
    return {f"text_encoder.{flat}": value}


def meaning(tensors: Tensors) -> dict[str, Array]:
    """Dense float64 ΔW by module; modules that do not change are left out.

    Modules of the text encoder are named with underscores for dots.
    """
    groups: dict[str, dict[str, Array]] = {}
    for key, value in tensors.items():
        suffix = _SUFFIX.search(key)
        assert suffix is not None, key
        role = {"lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up"}.get(
            suffix[1].removesuffix(".weight"), "alpha"
        )
        groups.setdefault(key[: suffix.start()], {})[role] = value
    found: dict[str, Array] = {}
    for stem, roles in groups.items():
        up, down = roles["up"].astype("float64"), roles["down"].astype("float64")
        scale = float(roles["alpha"]) / down.shape[0] if "alpha" in roles else 1.0
        found |= placed(stem, scale * (up @ down))
    return {name: value for name, value in found.items() if value.any()}


def dense(adapter: Adapter) -> dict[str, Array]:
    """What a loaded adapter says, cut into modules and named as `meaning` does."""
    found: dict[str, Array] = {}
    for site, delta in adapter.deltas.items():
        value = delta.dense()
        bounds = site.bounds(value.shape[0])
        for i, module in enumerate(site.modules):
            component, _, path = module.partition(".")
            if component == "text_encoder":
                module = f"text_encoder.{path.replace('.', '_')}"
            found[module] = value[bounds[i] : bounds[i + 1]]
    return {name: value for name, value in found.items() if value.any()}


def worst(found: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """The largest relative difference of any module; infinite where the modules differ."""
    if found.keys() != expected.keys():
        return float("inf")
    return max(
        float(np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name]))
        for name in expected
    )


# --- a network ---------------------------------------------------------------------------------


def native_weights(width: int = 16, seed: int = 3) -> Tensors:
    """Every linear layer of a narrow Flux by its original name, without norms."""
    random = np.random.default_rng(seed)
    high = {"img_attn.qkv": 3, "txt_attn.qkv": 3, "img_mlp.0": 4, "txt_mlp.0": 4, "linear1": 7,
            "img_mod.lin": 6, "txt_mod.lin": 6, "modulation.lin": 3}  # fmt: skip
    wide = {"img_mlp.2": 4, "txt_mlp.2": 4, "linear2": 5}
    found: Tensors = {}
    for name in NATIVE:
        leaf = name.split(".", 2)[2] if "blocks." in name else name
        rows = width * (2 if name == LAST else high.get(leaf, 1))
        found[f"{name}.weight"] = random.standard_normal((rows, width * wide.get(leaf, 1))).astype(
            "float32"
        )
        found[f"{name}.bias"] = random.standard_normal(rows).astype("float32")
    return found


def diffusers_weights(native: Tensors) -> Tensors:
    """The same network by diffusers' names."""
    found: Tensors = {}
    for name in NATIVE:
        for parameter in ("weight", "bias"):
            for module, value in parts_of(name, native[f"{name}.{parameter}"]).items():
                path = module.removeprefix("transformer.")
                found[f"{path}.{parameter}"] = np.ascontiguousarray(value)
    return found


def lora_of(
    names: Mapping[str, tuple[int, int]], rank: int, *, spelled: str, seed: int = 5
) -> Tensors:
    """Factors for stems of given shapes; `spelled` holds `{}` for the stem and the role."""
    random = np.random.default_rng(seed)
    found: Tensors = {}
    for name, (rows, columns) in names.items():
        found[spelled.format(name, "down")] = random.standard_normal((rank, columns)).astype(
            "float32"
        )
        found[spelled.format(name, "up")] = random.standard_normal((rows, rank)).astype("float32")
    return found
