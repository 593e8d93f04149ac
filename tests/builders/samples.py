"""Adapter files of any family and dialect, and what they mean, written without loramerge.adapter.

Spellings follow the rules of the formats as people describe them; the tables in loramerge.dialects
are checked against these, so nothing here imports them. `oracle` computes dense differences in
float64 from raw keys and arrays.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.families import FAMILIES, Module
from loramerge.families.clip import Clip, clip_modules
from loramerge.families.unet import Unet, unet_modules
from tests.builders.safetensors import (  # noqa: F401
    data_section,
    read_safetensors,
    safetensors_bytes,
    sparse_safetensors,
)

Array = np.ndarray[Any, Any]

SMALL_UNETS = {
    "sd15": Unet((8, 16, 24, 24), (1, 1, 1, 0), 1, 12, linear_projection=False),
    "sd21": Unet((8, 16, 24, 24), (1, 1, 1, 0), 1, 20, linear_projection=True),
    "sdxl": Unet((8, 16, 24), (0, 2, 10), 10, 28, linear_projection=True, added=36),
    "sdxl-refiner": Unet((8, 16, 24, 24), (0, 4, 4, 0), 4, 20, linear_projection=True, added=36),
}
SMALL_CLIPS = {
    "sd15": {"text_encoder": Clip(12, 12, vocabulary=30, positions=7)},
    "sd21": {"text_encoder": Clip(20, 23, vocabulary=30, positions=7)},
    "sdxl": {
        "text_encoder": Clip(12, 12, vocabulary=30, positions=7),
        "text_encoder_2": Clip(16, 32, projection=16, vocabulary=30, positions=7),
    },
    "sdxl-refiner": {"text_encoder_2": Clip(20, 32, projection=20, vocabulary=30, positions=7)},
}
STABLE_DIFFUSION = tuple(SMALL_UNETS)
ARCHITECTURES = {
    "sd15": "stable-diffusion-v1/lora",
    "sd21": "stable-diffusion-v2-512/lora",
    "sdxl": "stable-diffusion-xl-v1-base/lora",
    "sdxl-refiner": "stable-diffusion-xl-v1-refiner/lora",
}
FILE_DIALECTS = ("kohya", "diffusers", "diffusers-legacy", "lora_diffusion")
DIALECTS = (*FILE_DIALECTS, "peft")


def modules_of(family: str, *, full: bool = False) -> dict[str, Module]:
    """Every module of a family by full name, small or of full width."""
    if full:
        return dict(FAMILIES[family].modules())
    found = {f"unet.{m.path}": m for m in unet_modules(SMALL_UNETS[family])}
    for component, clip in SMALL_CLIPS[family].items():
        found |= {f"{component}.{m.path}": m for m in clip_modules(clip)}
    return found


def adaptable(family: str, *, full: bool = False) -> dict[str, Module]:
    """The modules trainers put LoRA on: linear layers and convolutions."""
    found = modules_of(family, full=full)
    return {name: m for name, m in found.items() if m.layer in ("linear", "conv")}


def attention(family: str, *, full: bool = False) -> dict[str, Module]:
    """The attention and feed-forward layers, and the layers of the text encoders."""
    wanted = re.compile(r"\.(attn[12]|ff|self_attn|mlp)\.")
    return {n: m for n, m in adaptable(family, full=full).items() if wanted.search(n)}


# --- spelling ----------------------------------------------------------------------------------


def sgm_path(path: str, family: str) -> str:
    """The single-file name of a UNet layer, as the rule between the two layouts is told."""
    top = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    if path in top:
        return top[path]
    part = path.split(".")
    rest = ".".join(part[4:])
    leaves = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    if part[0] == "mid_block":
        rest = ".".join(part[3:])
        if part[1] == "attentions":
            return f"middle_block.1.{rest}"
        return f"middle_block.{'0' if part[2] == '0' else '2'}.{leaves[rest]}"
    b, i = int(part[1]), int(part[3])
    if part[2] == "downsamplers":
        return f"input_blocks.{3 * b + 3}.0.op"
    if part[2] == "upsamplers":
        attended = {"sd15": (1, 2, 3), "sd21": (1, 2, 3), "sdxl": (0, 1), "sdxl-refiner": (1, 2)}
        return f"output_blocks.{3 * b + 2}.{2 if b in attended[family] else 1}.conv"
    block = (
        f"input_blocks.{3 * b + i + 1}"
        if part[0] == "down_blocks"
        else f"output_blocks.{3 * b + i}"
    )
    return f"{block}.1.{rest}" if part[2] == "attentions" else f"{block}.0.{leaves[rest]}"


@cache
def positional_order(family: str) -> list[str]:
    """Full names in the order in which lora_diffusion counted them (diffusers of 2022)."""
    names = list(modules_of(family))
    order = []
    for section in ("down_blocks", "up_blocks", "mid_block"):
        blocks = dict.fromkeys(
            m.group(1)
            for n in names
            if (m := re.match(rf"(unet\.{section}\..*transformer_blocks\.\d+)\.", n))
        )
        for block in blocks:
            order += [f"{block}.attn1.{leaf}" for leaf in ("to_q", "to_k", "to_v", "to_out.0")]
            order += [f"{block}.ff.net.0.proj"]
            order += [f"{block}.attn2.{leaf}" for leaf in ("to_q", "to_k", "to_v", "to_out.0")]
    return order


@cache
def encoder_order(family: str) -> list[str]:
    """The same for the text encoder: keys, values, queries, out."""
    layers = 12 if family == "sd15" else 23
    return [
        f"text_encoder.text_model.encoder.layers.{i}.self_attn.{leaf}"
        for i in range(layers)
        for leaf in ("k_proj", "v_proj", "q_proj", "out_proj")
    ]


def stem_of(dialect: str, family: str, name: str) -> str:
    """How a dialect spells a module."""
    component, _, path = name.partition(".")
    if dialect == "kohya":
        if component == "unet":
            spelled = sgm_path(path, family) if family.startswith("sdxl") else path
            return "lora_unet_" + spelled.replace(".", "_")
        single = {"sd15": "lora_te_", "sd21": "lora_te_", "sdxl-refiner": "lora_te_"}
        prefix = (
            single.get(family)
            or {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[component]
        )
        return prefix + path.replace(".", "_")
    if dialect == "peft":
        return f"{component}/base_model.model.{path}"
    if dialect == "lora_diffusion":
        order = positional_order(family) if component == "unet" else encoder_order(family)
        return f"{component}:{order.index(name)}"
    return name


def suffixes_of(dialect: str, name: str) -> dict[str, str]:
    """Role → suffix of a dialect for a module."""
    if dialect == "kohya":
        return {"up": ".lora_up.weight", "down": ".lora_down.weight", "alpha": ".alpha"}
    if dialect == "lora_diffusion":
        return {"up": ":up", "down": ":down"}
    if dialect == "diffusers-legacy":
        middle = ".lora." if name.startswith("unet.") else ".lora_linear_layer."
        return {"up": f"{middle}up.weight", "down": f"{middle}down.weight"}
    return {"up": ".lora_B.weight", "down": ".lora_A.weight"}


def sayable(dialect: str, family: str, modules: Mapping[str, Module]) -> dict[str, Module]:
    """The modules a dialect has a place for."""
    if dialect != "lora_diffusion":
        return dict(modules)
    places = {*positional_order(family), *encoder_order(family)}
    return {name: m for name, m in modules.items() if name in places}


# --- building ----------------------------------------------------------------------------------


@dataclass
class Factors:
    """The two halves of one module, and its alpha (None: not stated)."""

    up: Array
    down: Array
    alpha: float | None = None


@dataclass
class Sample:
    """An adapter as a file would hold it."""

    family: str
    dialect: str
    tensors: dict[str, Array]
    metadata: dict[str, str] = field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)


def factors_for(
    modules: Mapping[str, Module],
    *,
    rank: int | Sequence[int] = 3,
    alpha: float | Sequence[float | None] | None = None,
    seed: int = 0,
    dtype: Any = np.float32,
) -> dict[str, Factors]:
    """Seeded random factors for modules; ranks and alphas are taken in turns."""
    rng = np.random.default_rng(seed)
    ranks = [rank] if isinstance(rank, int) else list(rank)
    alphas = list(alpha) if isinstance(alpha, (list, tuple)) else [alpha]
    made = {}
    for i, (name, module) in enumerate(modules.items()):
        r = ranks[i % len(ranks)]
        out, *rest = module.shape
        tail = (1, 1) if len(rest) == 3 else ()
        up = rng.standard_normal((out, r, *tail)) / math.sqrt(r)
        down = rng.standard_normal((r, *rest)) / math.sqrt(math.prod(rest))
        made[name] = Factors(up.astype(dtype), down.astype(dtype), alphas[i % len(alphas)])
    return made


def spell(
    factors: Mapping[str, Factors],
    family: str,
    dialect: str,
    *,
    architecture: bool = True,
) -> Sample:
    """Lay factors out as a dialect does. Dialects without alpha get it folded into up."""
    sample = Sample(family, dialect, {})
    if architecture:
        sample.metadata["modelspec.architecture"] = ARCHITECTURES[family]
    for name, f in factors.items():
        stem, suffix = stem_of(dialect, family, name), suffixes_of(dialect, name)
        up = f.up
        if f.alpha is not None and dialect not in ("kohya", "peft"):
            up = (up.astype(np.float64) * f.alpha / up.shape[1]).astype(up.dtype)
        sample.tensors[stem + suffix["down"]] = f.down
        sample.tensors[stem + suffix["up"]] = up
        if f.alpha is not None and dialect == "kohya":
            sample.tensors[stem + suffix["alpha"]] = np.array(f.alpha, np.float32)
        if dialect == "peft":
            component, _, path = name.partition(".")
            config = sample.configs.setdefault(
                component,
                {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "rank_pattern": {},
                 "alpha_pattern": {}, "target_modules": [], "use_rslora": False},
            )  # fmt: skip
            config["target_modules"].append(path)
            config["rank_pattern"][path] = f.up.shape[1]
            config["alpha_pattern"][path] = f.up.shape[1] if f.alpha is None else f.alpha
    if dialect == "lora_diffusion":
        sample.metadata["unet"] = '["CrossAttention", "Attention", "GEGLU"]'
    return sample


def make(
    family: str,
    dialect: str,
    modules: Mapping[str, Module] | None = None,
    **options: Any,
) -> Sample:
    """An adapter of every attention layer (or the modules given) in a dialect."""
    chosen = sayable(dialect, family, attention(family) if modules is None else modules)
    return spell(factors_for(chosen, **options), family, dialect)


def write(sample: Sample, path: Path) -> Path:
    """Write a sample: a file, or for `peft` a folder with one folder per component."""
    if sample.dialect != "peft":
        path.write_bytes(safetensors_bytes(sample.tensors, sample.metadata))
        return path
    for component, config in sample.configs.items():
        folder = path if len(sample.configs) == 1 else path / component
        folder.mkdir(parents=True)
        head = f"{component}/"
        own = {k.removeprefix(head): v for k, v in sample.tensors.items() if k.startswith(head)}
        (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(own, sample.metadata))
        (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    return path


def read(path: Path, family: str, dialect: str) -> Sample:
    """Read what was written, by us or by loramerge, without loramerge."""
    if dialect != "peft":
        tensors, metadata = read_safetensors(path)
        return Sample(family, dialect, tensors, metadata)
    sample = Sample(family, dialect, {})
    single = (path / "adapter_config.json").is_file()
    for folder in [path] if single else sorted(p for p in path.iterdir() if p.is_dir()):
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        tensors, sample.metadata = read_safetensors(folder / "adapter_model.safetensors")
        component = folder.name
        if single:
            component = "text_encoder" if any("self_attn" in k for k in tensors) else "unet"
        sample.configs[component] = config
        sample.tensors |= {f"{component}/{key}": t for key, t in tensors.items()}
    return sample


# --- the oracle --------------------------------------------------------------------------------


def pattern_value(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    """PEFT's rule: the first key that, as an expression, matches the path or its end."""
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default


def scale_of(sample: Sample, name: str, stem: str, rank: int) -> float:
    """What the factors of a module are multiplied by."""
    if sample.dialect == "kohya":
        stored = sample.tensors.get(f"{stem}.alpha")
        return 1.0 if stored is None else float(stored) / rank
    component, _, path = name.partition(".")
    config = sample.configs.get(component)
    if sample.dialect == "diffusers" and "lora_adapter_metadata" in sample.metadata:
        flat = json.loads(sample.metadata["lora_adapter_metadata"])
        head = f"{component}."
        config = {k.removeprefix(head): v for k, v in flat.items() if k.startswith(head)}
    if not config:
        return 1.0
    alpha = pattern_value(config.get("alpha_pattern") or {}, path, config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def dense(up: Array, down: Array, scale: float, mid: Array | None = None) -> Array:
    """ΔW in float64: scale · up · (mid) · down."""
    wide = up.astype(np.float64).reshape(up.shape[0], up.shape[1])
    if mid is None:
        product = wide @ down.astype(np.float64).reshape(down.shape[0], -1)
        return scale * product.reshape(up.shape[0], *down.shape[1:])
    narrow = down.astype(np.float64).reshape(down.shape[0], down.shape[1])
    return scale * np.einsum("op,pqhw,qi->oihw", wide, mid.astype(np.float64), narrow)


def oracle(sample: Sample, names: Iterable[str]) -> dict[str, Array]:
    """Dense float64 ΔW of the modules named, from raw keys and arrays."""
    found = {}
    for name in names:
        stem, suffix = (
            stem_of(sample.dialect, sample.family, name),
            suffixes_of(sample.dialect, name),
        )
        if stem + suffix["up"] not in sample.tensors:
            continue
        up, down = sample.tensors[stem + suffix["up"]], sample.tensors[stem + suffix["down"]]
        found[name] = dense(up, down, scale_of(sample, name, stem, down.shape[0]))
    return found


def relative(found: Array, expected: Array) -> float:
    """‖found − expected‖ / ‖expected‖; absolute where the expected is zero."""
    norm = float(np.linalg.norm(expected))
    error = float(np.linalg.norm(found.astype(np.float64).reshape(expected.shape) - expected))
    return error / norm if norm else error


def pairs(first: Iterable[str], second: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Every combination."""
    return ((a, b) for a in first for b in second)
