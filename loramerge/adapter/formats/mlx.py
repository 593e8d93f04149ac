"""Adapters of MLX-LM: `adapters.safetensors` beside an `adapter_config.json` of its own.

They are read as the PEFT adapter of the same change: MLX has the factors transposed, `lora_a (in,
r)` and `lora_b (r, out)`, and states the scale itself. DoRA's magnitudes are called `m`; a full
fine-tune holds whole weights.

Source: mlx_lm's `tuner/lora.py` and `tuner/dora.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loramerge.adapter.formats.source import AdapterSource
from loramerge.errors import FormatError
from loramerge.files.reader import TensorFile
from loramerge.files.tensors import Tensor
from loramerge.files.views import transposed

__all__ = ["MLX_WEIGHTS", "is_mlx", "open_mlx"]

MLX_WEIGHTS = "adapters.safetensors"
_HEAD = "base_model.model."
# ends of names: MLX's → PEFT's, of layers and of embeddings
_LAYER = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
_TABLE = {"lora_a": "lora_embedding_A", "lora_b": "lora_embedding_B"}
_MAGNITUDE = {"m": "lora_magnitude_vector.weight"}
_TABLES = ("embed_tokens", "wte", "embeddings", "word_embeddings", "tok_embeddings", "embedding")


def is_mlx(config: object) -> bool:
    """Return whether a configuration is one of MLX-LM."""
    return isinstance(config, Mapping) and bool(
        {"fine_tune_type", "lora_parameters"} & config.keys()
    )


def open_mlx(
    path: Path, weights: Path, config_path: Path, config: Mapping[str, Any]
) -> AdapterSource:
    """Open an adapter of MLX-LM as the PEFT adapter that it means.

    Args:
        path: of the folder or file, as it was given.

    Raises:
        FormatError: if the configuration does not say the scale, or names another sort of training.
    """
    file = TensorFile(weights)
    sort = str(config.get("fine_tune_type", "lora"))
    if sort not in ("lora", "dora", "full"):
        raise FormatError(
            f"an adapter of MLX-LM of the type {sort[:40]!r} is not known",
            file=config_path,
            expected="fine_tune_type lora, dora or full",
        )
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for key, tensor in file.tensors.items():
        module, _, end = key.rpartition(".")
        words = _TABLE if module.rpartition(".")[2] in _TABLES else _LAYER
        if end in words and len(tensor.shape) == 2:
            tensors[f"{_HEAD}{module}.{words[end]}"] = transposed(tensor)
            ranks[module] = tensor.shape[1 if end == "lora_a" else 0]
        elif end in _MAGNITUDE and sort == "dora":
            tensors[f"{_HEAD}{module}.{_MAGNITUDE[end]}"] = tensor
        else:
            tensors[f"{_HEAD}{key}"] = tensor
    found = AdapterSource(
        str(path),
        tensors,
        dict(file.metadata),
        files=[weights, config_path],
        translated="MLX-LM",
    )
    found.configs[""] = {
        "peft_type": "LORA",
        **(_scaled(config, config_path, ranks) if ranks else {}),
    }
    if sort == "dora":
        found.configs[""]["use_dora"] = True
    return found


def _scaled(config: Mapping[str, Any], path: Path, ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return PEFT's ranks and alphas for the scale that a configuration states."""
    parameters = config.get("lora_parameters")
    scale = parameters.get("scale") if isinstance(parameters, Mapping) else None
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise FormatError(
            "the configuration of this adapter of MLX-LM does not say its scale",
            file=path,
            expected="lora_parameters: {scale: …}",
            found=repr(scale),
        )
    rank = next(iter(ranks.values()))
    others = {module: r for module, r in ranks.items() if r != rank}
    return {
        "r": rank,
        "lora_alpha": scale * rank,
        "rank_pattern": others,
        "alpha_pattern": {module: scale * r for module, r in others.items()},
    }
