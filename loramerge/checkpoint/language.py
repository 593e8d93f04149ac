"""Bases that are language models in GGUF files, with the names that transformers gives their modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loramerge.checkpoint.files import CheckpointFile, CheckpointFiles
from loramerge.errors import FormatError
from loramerge.families import Parameter
from loramerge.families.llama_cpp import ARCHITECTURE, LANGUAGE_MODELS
from loramerge.files.tensors import Tensor

__all__ = ["gguf_config", "gguf_modules"]

_PARAMETERS: tuple[Parameter, ...] = ("weight", "bias")
Where = tuple[CheckpointFile, Tensor, str, int]


def gguf_modules(files: CheckpointFiles) -> Mapping[tuple[str, Parameter], Where]:
    """Return (module, parameter) → file, tensor, its name, and the heads whose halves alternate.

    Returns:
        nothing for files of other sorts.

    Raises:
        FormatError: if the file does not tell the number of heads that its rows need.
    """
    (file, *_) = files.weights
    fields = file.fields
    model = LANGUAGE_MODELS.get(str(fields.get(ARCHITECTURE)))
    if model is None:
        return {}
    tensors = file.open()[0]
    found: dict[tuple[str, Parameter], Where] = {}
    for module, stored in model.modules(fields):
        stem, heads = stored
        for parameter in _PARAMETERS:
            name = f"{stem}.{parameter}"
            tensor = tensors.get(name)
            if tensor is None:
                continue
            if heads and tensor.shape[0] % (2 * heads):
                raise FormatError(
                    "the rows of this tensor cannot be those of its heads",
                    file=file.path,
                    module=name,
                    found=f"{tensor.shape[0]} rows, {heads} heads",
                )
            if model.lacks_heads(stored):
                raise FormatError(
                    "the file does not tell the number of attention heads, which order its rows",
                    file=file.path,
                )
            found[module, parameter] = (file, tensor, name, heads)
    return found


def gguf_config(files: CheckpointFiles) -> dict[str, Any]:
    """Return what the configuration of transformers would say of a language model in a GGUF file."""
    (file, *_) = files.weights
    kind = str(file.fields.get(ARCHITECTURE))
    if kind not in LANGUAGE_MODELS:
        return {}
    heads = file.fields.get(f"{kind}.attention.head_count")
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": file.fields.get(f"{kind}.attention.head_count_kv", heads),
        "model_type": kind,
        "architectures": ["ForCausalLM"],
        "tie_word_embeddings": "output.weight" not in file.open()[0],
    }
