"""Bases of no known family, by the names in their files: models of transformers, and any other weights.

PEFT names the modules it adapts as the model does, and so does the checkpoint, except for the level
that a head adds (`transformer.h.0…` with one, `h.0…` without). `naming` says which names mean one
module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from loramerge.checkpoint.files import CheckpointFile, CheckpointFiles
from loramerge.checkpoint.language import gguf_config
from loramerge.checkpoint.naming import NETWORK, network_head
from loramerge.families import Parameter
from loramerge.files.dtypes import is_float
from loramerge.files.json_values import read_values
from loramerge.files.tensors import Tensor

__all__ = [
    "are_of_an_adapter",
    "are_weights",
    "is_transformers",
    "model_class",
    "model_config",
    "named_tensors",
    "network_tensors",
    "with_given",
]

_CONFIG = "config.json"
_PARAMETERS: tuple[Parameter, ...] = ("weight", "bias")
_PARAMETER_OF: Mapping[str, Parameter] = {"weight": "weight", "bias": "bias", "scale": "weight"}
# what stands in the names of adapters' tensors, and not in those of models
_ADAPTER_WORDS = (
    r"^base_model\.model\.|lora|lokr|hada_|(?<![a-z])b?oft[_.]|ia3|dora_scale|\.diff(?:_b|_m)?$"
    r"|[wb]_norm$|on_input$|\.alpha$"
)


def is_transformers(path: Path) -> bool:
    """Return whether a folder, or the folder of a file, is a model of transformers."""
    return model_class(path) is not None


def model_class(path: Path) -> str | None:
    """Return the class of the model of transformers that a folder, or that of a file, holds.

    Returns:
        None if it holds none; an empty text where its configuration names no class.
    """
    config = (path if path.is_dir() else path.parent) / _CONFIG
    try:
        content = read_values(config)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or "model_type" not in content:
        return None
    classes = content.get("architectures")
    return str(classes[0]) if isinstance(classes, list) and classes else ""


def named_tensors(
    files: CheckpointFiles,
) -> Mapping[tuple[str, Parameter], tuple[CheckpointFile, Tensor, str]]:
    """Return (module, parameter) → place, for every weight and bias of the files."""
    found: dict[tuple[str, Parameter], tuple[CheckpointFile, Tensor, str]] = {}
    for file in files.weights:
        for name, tensor in file.weights().items():
            module, _, word = name.rpartition(".")
            for parameter in _PARAMETERS:
                if module and word == parameter:
                    found[module, parameter] = (file, tensor, name)
    return found


def are_weights(names: Iterable[str]) -> bool:
    """Return whether tensors are the weights of a model rather than an adapter's, by their names."""
    known = list(names)
    has = any(name.endswith((".weight", ".bias")) for name in known)
    return has and not are_of_an_adapter(known)


def are_of_an_adapter(names: Iterable[str]) -> bool:
    """Return whether the name of any tensor has what only the names of adapters' tensors have."""
    return any(re.search(_ADAPTER_WORDS, name) for name in names)


def network_tensors(
    files: CheckpointFiles,
) -> Mapping[tuple[str, Parameter], list[tuple[CheckpointFile, Tensor, str]]]:
    """Return (module, parameter) → places, for every tensor of a checkpoint of no known family.

    Modules of a folder's components begin with the component. In single files those of the network begin
    with `transformer.` in place of what the file has there, and others are called as they are. A tensor
    that is not a weight or bias is a module of its own, a bare parameter.

    Returns:
        nothing where the names are not those of a model's weights.
    """
    if not are_weights(name for file in files.weights for name in file.open()[0]):
        return {}
    head = network_head([n for file in files.weights if not file.component for n in file.open()[0]])
    found: dict[tuple[str, Parameter], list[tuple[CheckpointFile, Tensor, str]]] = {}
    for file in files.weights:
        tensors = file.weights()
        for name, tensor in tensors.items():
            stem, _, word = name.rpartition(".")
            parameter = _PARAMETER_OF.get(word) if stem else None
            if word not in _PARAMETERS and not _is_alone(name, tensors):
                continue
            module = name if parameter is None else stem
            if file.component:
                module = f"{file.component}.{module}"
            elif module.startswith(head):
                module = f"{NETWORK}.{module[len(head) :]}"
            found.setdefault((module, parameter or "weight"), []).append((file, tensor, name))
    return found


def _is_alone(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor without the usual word is a parameter, and not a fact about another."""
    stem = name.rpartition(".")[0]
    tensor = tensors[name]
    plain = is_float(tensor.dtype) and not tensor.dtype.startswith("F8") and bool(tensor.shape)
    return plain and not (tensors.keys() & {stem, f"{stem}.weight"})


def with_given(
    files: CheckpointFiles, given: Mapping[CheckpointFile, Mapping[str, Tensor]]
) -> CheckpointFiles:
    """Return the files with tensors that replace stored ones, or are added."""
    weights = [
        CheckpointFile(f.path, f.relative, f.component, given[f]) if f in given else f
        for f in files.weights
    ]
    return replace(files, weights=weights)


def model_config(files: CheckpointFiles) -> dict[str, Any]:
    """Return the configuration of a model of transformers, empty where there is none."""
    if files.weights[0].fields:
        return gguf_config(files)
    place = files.root or files.weights[0].path.parent
    try:
        content = read_values(place / _CONFIG)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
