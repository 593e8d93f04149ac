"""Small language models of several layers, as folders of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.builders import small_models

__all__ = ["layered"]


def layered(
    folder: Path, layers: int, seed: int, *, dtype: str = "float16", shards: int = 1, **config: Any
) -> dict[str, np.ndarray[Any, Any]]:
    """Write a model; return its tensors by name."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (10, 4),
        "model.embed_tokens.weight": (10, 4),
    }
    for number in range(layers):
        shapes[f"model.layers.{number}.mlp.weight"] = (3, 4)
        shapes[f"model.layers.{number}.mlp.bias"] = (3,)
    shapes["model.norm.weight"] = (4,)
    tensors = {n: random.standard_normal(shape).astype(dtype) for n, shape in shapes.items()}
    small_models.write(folder, tensors, shards, num_hidden_layers=layers, **config)
    return tensors
