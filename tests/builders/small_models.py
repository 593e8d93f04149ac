"""Folders that transformers would load, of a few small tensors: the least that can be merged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.builders.bases import STORAGE, read_safetensors, write_safetensors
from tests.builders.deltas import rng

__all__ = ["FILE", "SHAPES", "read", "weights", "write", "write_tuned"]

Array = np.ndarray[Any, Any]
FILE = "model.safetensors"
SHAPES: Mapping[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (37, 8),
    "model.layers.0.attn.q_proj.weight": (12, 8),
    "model.layers.0.attn.q_proj.bias": (12,),
    "model.layers.0.norm.weight": (8,),
    "model.layers.1.mlp.up_proj.weight": (9, 13),
    "lm_head.weight": (37, 8),
}
CONFIG = {"model_type": "small", "architectures": ["SmallForCausalLM"]}


def weights(seed: int, dtype: str = "F32", size: float = 1.0) -> dict[str, Array]:
    """Random weights of every tensor, as a type holds them."""
    random = rng(seed)
    return {
        name: (size * random.standard_normal(shape)).astype("float32").astype(STORAGE[dtype])
        for name, shape in SHAPES.items()
    }


def write(folder: Path, content: Mapping[str, Array], shards: int = 1, **config: Any) -> Path:
    """Write a folder with its configuration, in one file or in shards with an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    if shards == 1:
        write_safetensors(folder / FILE, content, {"format": "pt"})
        return folder
    index = {}
    for i, names in enumerate(np.array_split(np.array(list(content)), shards), 1):
        name = f"model-{i:05d}-of-{shards:05d}.safetensors"
        write_safetensors(folder / name, {str(n): content[str(n)] for n in names}, {"format": "pt"})
        index |= dict.fromkeys(map(str, names), name)
    (folder / f"{FILE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def write_tuned(folder: Path) -> Path:
    """Write a base `c`, and two models that were trained from it: `models/a` and `models/b`."""
    base = weights(0, "F16")
    write(folder / "c", base)
    for number, name in ((1, "a"), (2, "b")):
        change = weights(number, "F32", 0.1)
        tuned = {n: (v + change[n]).astype("float16") for n, v in base.items()}
        write(folder / "models" / name, tuned)
    return folder


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def read(folder: Path) -> dict[str, Array]:
    """All tensors of a folder, by name."""
    found: dict[str, Array] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= read_safetensors(path)[0]
    return found
