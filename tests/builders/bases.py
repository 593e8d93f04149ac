"""Small checkpoints of every layout, put together from canonical weights by rules of our own.

`Base.tensors(weights)` says what each file of the layout holds for given weights, so that the same
function makes the base and says what a bake must give.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.adapter import Adapter, Delta
from loramerge.adapter.kinds.replacement import Replacement
from loramerge.families.clip import Clip, clip_modules
from loramerge.families.spec import Module
from loramerge.families.unet import Unet, ldm_name, unet_modules
from tests.builders.deltas import adapter, low_rank, rng
from tests.builders.safetensors import STORAGE, read_safetensors, write_safetensors  # noqa: F401

Array = np.ndarray[Any, Any]
Weights = dict[str, Array]  # `unet.conv_in.weight` → array
Files = dict[str, dict[str, Array]]  # file → tensors in order

# bits of the mantissa, smallest normal exponent
_PRECISION = {
    "F32": (23, -126),
    "F16": (10, -14),
    "BF16": (7, -126),
    "F8_E4M3": (3, -6),
    "F8_E5M2": (2, -14),
}


def ulp(values: Array, dtype: str) -> Array:
    """The distance between neighbours of the type at each value."""
    bits, low = _PRECISION[dtype]
    exponent = np.floor(np.log2(np.maximum(np.abs(values.astype("float64")), 1e-300)))
    return np.asarray(2.0 ** (np.maximum(exponent, low) - bits))


# ---- architectures

UNETS = {
    "sd15": Unet((8, 12, 16, 16), (1, 1, 1, 0), 1, 10, linear_projection=False),
    "sd21": Unet((8, 12, 16, 16), (1, 1, 1, 0), 1, 14, linear_projection=True),
    "sdxl": Unet((8, 12, 16), (0, 2, 10), 10, 18, linear_projection=True, added=22),
    "sdxl-refiner": Unet((6, 8, 12, 12), (0, 4, 4, 0), 4, 14, linear_projection=True, added=20),
}
CLIPS = {
    "sd15": {"text_encoder": Clip(10, 12, vocabulary=11, positions=5)},
    "sd21": {"text_encoder": Clip(14, 23, vocabulary=11, positions=5)},
    "sdxl": {
        "text_encoder": Clip(10, 12, vocabulary=11, positions=5),
        "text_encoder_2": Clip(8, 32, projection=8, vocabulary=11, positions=5),
    },
    "sdxl-refiner": {"text_encoder_2": Clip(8, 32, projection=6, vocabulary=11, positions=5)},
}


def modules(family: str) -> dict[str, Module]:
    found = {f"unet.{m.path}": m for m in unet_modules(UNETS[family])}
    for component, clip in CLIPS[family].items():
        found |= {f"{component}.{m.path}": m for m in clip_modules(clip)}
    return found


def make_weights(
    found: Mapping[str, Module], dtype: str = "F32", seed: int = 0, size: float = 0.1
) -> Weights:
    random = rng(seed)
    made: Weights = {}
    for name, module in found.items():
        made[f"{name}.weight"] = size * random.standard_normal(module.shape)
        if module.bias:
            made[f"{name}.bias"] = size * random.standard_normal(module.shape[:1])
    return {name: array.astype("float32").astype(STORAGE[dtype]) for name, array in made.items()}


def _component(weights: Weights, name: str) -> Weights:
    return {k[len(name) + 1 :]: v for k, v in weights.items() if k.startswith(f"{name}.")}


def _unet_single(weights: Weights, unet: Unet, prefix: str) -> dict[str, Array]:
    found = {}
    for name, array in _component(weights, "unet").items():
        path, _, parameter = name.rpartition(".")
        found[f"{prefix}{ldm_name(path, unet)}.{parameter}"] = array
    return found


_OPENCLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def _openclip(weights: Weights, component: str, clip: Clip, prefix: str) -> dict[str, Array]:
    """The text tower of OpenCLIP: queries, keys and values stacked, the projection transposed."""
    own = _component(weights, component)
    found = {
        "positional_embedding": own["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": own["text_model.embeddings.token_embedding.weight"],
    }
    for i in range(clip.layers):
        layer, block = f"text_model.encoder.layers.{i}", f"transformer.resblocks.{i}"
        for parameter in ("weight", "bias"):
            found[f"{block}.attn.in_proj_{parameter}"] = np.concatenate(
                [own[f"{layer}.self_attn.{x}_proj.{parameter}"] for x in "qkv"]
            )
            for ours, theirs in _OPENCLIP.items():
                found[f"{block}.{theirs}.{parameter}"] = own[f"{layer}.{ours}.{parameter}"]
    for parameter in ("weight", "bias"):
        found[f"ln_final.{parameter}"] = own[f"text_model.final_layer_norm.{parameter}"]
    if "text_projection.weight" in own:
        found["text_projection"] = np.ascontiguousarray(own["text_projection.weight"].T)
    return {prefix + name: array for name, array in found.items()}


def _plain(
    weights: Weights, component: str, prefix: str = "", *, short: bool = False
) -> dict[str, Array]:
    return {
        prefix + (name.removeprefix("text_model.") if short else name): array
        for name, array in _component(weights, component).items()
    }


def extras(dtype: str) -> dict[str, Array]:
    """What a single file holds beside: a VAE, a schedule, integers, a scalar, an empty tensor."""
    random, kind = rng(99), STORAGE[dtype]
    return {
        "first_stage_model.decoder.conv_in.weight": random.standard_normal((4, 3, 3, 3)).astype(
            kind
        ),
        "first_stage_model.decoder.conv_in.bias": random.standard_normal(4).astype(kind),
        "alphas_cumprod": np.linspace(1, 0, 50).astype("float32"),
        "cond_stage_model.position_ids": np.arange(7, dtype="int64").reshape(1, 7),
        "model_ema.num_updates": np.array(3, dtype="int64"),
        "logit_scale": np.array(4.6, dtype=kind),
        "empty": np.zeros((0, 3), kind),
    }


def _single(family: str, weights: Weights, dtype: str, *, short: bool = False) -> dict[str, Array]:
    unet = _unet_single(weights, UNETS[family], "model.diffusion_model.")
    clips = CLIPS[family]
    if family == "sd15":
        text = _plain(weights, "text_encoder", "cond_stage_model.transformer.", short=short)
    elif family == "sd21":
        text = _openclip(weights, "text_encoder", clips["text_encoder"], "cond_stage_model.model.")
    elif family == "sdxl":
        text = _plain(weights, "text_encoder", "conditioner.embedders.0.transformer.", short=short)
        text |= _openclip(
            weights, "text_encoder_2", clips["text_encoder_2"], "conditioner.embedders.1.model."
        )
    else:
        text = _openclip(
            weights, "text_encoder_2", clips["text_encoder_2"], "conditioner.embedders.0.model."
        )
    beside = list(extras(dtype).items())
    # what is not touched lies before, between and after
    return dict(beside[:2]) | unet | dict(beside[2:4]) | text | dict(beside[4:])


UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
TEXT_FILE = "text_encoder/model.safetensors"


def _folder(family: str, weights: Weights, dtype: str, *, short: bool = False) -> Files:
    files: Files = {UNET_FILE: _plain(weights, "unet")}
    for component in CLIPS[family]:
        files[f"{component}/model.safetensors"] = _plain(weights, component, short=short)
    files["vae/diffusion_pytorch_model.safetensors"] = {
        "decoder.conv_in.weight": rng(5).standard_normal((4, 3, 3, 3)).astype(STORAGE[dtype])
    }
    return files


@dataclass
class Base:
    """A checkpoint on the disk.

    Args:
        tensors: function of weights that gives every file's tensors.
        others: files that hold no weights.
    """

    path: Path
    family: str
    weights: Weights
    tensors: Callable[[Weights], Files]
    folder: bool = False
    metadata: dict[str, str] = field(default_factory=lambda: {"format": "pt", "author": "test"})
    others: dict[str, str] = field(default_factory=dict)

    def write(self) -> Base:
        for name, content in self.tensors(self.weights).items():
            write_safetensors(self.file(self.path, name), content, self.metadata)
        for name, text in self.others.items():
            self.file(self.path, name).parent.mkdir(parents=True, exist_ok=True)
            self.file(self.path, name).write_text(text)
        return self

    def file(self, root: Path, name: str) -> Path:
        return root / name if self.folder else root


def single(
    path: Path, family: str, dtype: str = "F32", *, short: bool = False, seed: int = 0
) -> Base:
    weights = make_weights(modules(family), dtype, seed)

    def tensors(w: Weights) -> Files:
        return {"": _single(family, w, dtype, short=short)}

    return Base(path, family, weights, tensors).write()


def folder(
    path: Path, family: str, dtype: str = "F32", *, short: bool = False, seed: int = 0
) -> Base:
    weights = make_weights(modules(family), dtype, seed)

    def tensors(w: Weights) -> Files:
        return _folder(family, w, dtype, short=short)

    others = {
        "model_index.json": '{"_class_name": "StableDiffusionPipeline"}',
        "unet/config.json": "{}",
        "tokenizer/vocab.json": "{}",
        "README.md": "read me",
    }
    return Base(path, family, weights, tensors, folder=True, others=others).write()


def unet_alone(path: Path, family: str, prefix: str, dtype: str = "F32") -> Base:
    """The UNet by itself; the prefix `diffusers` means diffusers' names."""
    found = {name: m for name, m in modules(family).items() if name.startswith("unet.")}

    def tensors(w: Weights) -> Files:
        if prefix == "diffusers":
            return {"": _plain(w, "unet")}
        return {"": _unet_single(w, UNETS[family], prefix)}

    return Base(path, family, make_weights(found, dtype), tensors).write()


def sharded(path: Path, family: str, dtype: str = "F32", count: int = 2, suffix: str = "") -> Base:
    """A folder whose UNet lies in shards with an index."""
    base = folder(path, family, dtype)
    whole = base.tensors
    names = list(whole(base.weights)[UNET_FILE])
    parts = np.array_split(np.array(names), count)

    def shard(i: int) -> str:
        return f"diffusion_pytorch_model-{i + 1:05d}-of-{count:05d}{suffix}.safetensors"

    def tensors(w: Weights) -> Files:
        files = whole(w)
        unet = files.pop(UNET_FILE)
        return files | {
            f"unet/{shard(i)}": {str(n): unet[str(n)] for n in part} for i, part in enumerate(parts)
        }

    (path / UNET_FILE).unlink()
    base.tensors = tensors
    total = sum(a.nbytes for a in whole(base.weights)[UNET_FILE].values())
    base.others[f"unet/diffusion_pytorch_model.safetensors.index{suffix}.json"] = json.dumps(
        {
            "metadata": {"total_size": total},
            "weight_map": {str(n): shard(i) for i, part in enumerate(parts) for n in part},
        }
    )
    return base.write()


# ---- adapters


def adapter_for(
    family: str,
    *,
    seed: int = 0,
    rank: int = 3,
    only: Callable[[str], bool] = lambda _: True,
    scale: float = 0.2,
    ambiguous: Iterable[str] = (),
) -> Adapter:
    """A LoRA of every linear layer and convolution that `only` lets through."""
    deltas: dict[str, Delta] = {
        name: low_rank(m.shape, rank, seed + i, alpha=float(rank)).scaled(scale / 10)
        for i, (name, m) in enumerate(modules(family).items())
        if m.layer in ("linear", "conv") and only(name)
    }
    return adapter(deltas, path=f"{family}-{seed}", families=[family, *ambiguous])


def asked(weights: Weights, inputs: Iterable[tuple[Adapter, float]]) -> dict[str, Array]:
    """Σ w ΔW of every parameter that changes, in float64."""
    total: dict[str, Array] = {}
    for a, w in inputs:
        for site, delta in a.deltas.items():
            key = f"{site.modules[0]}.{site.parameter}"
            if not w or key not in weights:
                continue
            before = weights[key].astype("float64")
            if isinstance(delta, Replacement):
                value = delta.dense(before)
            else:
                value = delta.dense()
            value = w * value.reshape(before.shape)
            total[key] = total.get(key, np.zeros(before.shape)) + value
    return total


def magnitudes(weights: Weights, inputs: Iterable[tuple[Adapter, float]]) -> dict[str, Array]:
    """|W| + Σ |w| |up| |down|: what the rounding of a float32 computation is relative to."""
    total = {k: np.abs(v.astype("float64")) for k, v in weights.items()}
    for a, w in inputs:
        for site, delta in a.deltas.items():
            key = f"{site.modules[0]}.{site.parameter}"
            if key not in weights:
                continue
            if delta.rank is not None:
                up, down = (np.abs(x) for x in delta.factors("float64"))
                value = up @ down
            else:
                value = np.abs(delta.dense(weights[key].astype("float64")))
            total[key] = total[key] + abs(w) * value.reshape(weights[key].shape)
    return total


def exact(weights: Weights, inputs: Iterable[tuple[Adapter, float]]) -> dict[str, Array]:
    """W + Σ w ΔW of every parameter, in float64."""
    change = asked(weights, inputs)
    return {k: v.astype("float64") + change.get(k, 0.0) for k, v in weights.items()}
