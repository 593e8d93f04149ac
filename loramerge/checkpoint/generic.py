"""Bases of no known family: a folder that transformers can load, by the names in its files.

PEFT names the modules it adapts as the model does, and so does the checkpoint, except for the level
that a head adds (`transformer.h.0…` with one, `h.0…` without).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from loramerge.checkpoint.files import CheckpointFile, CheckpointFiles
from loramerge.checkpoint.language import gguf_config
from loramerge.families import Parameter
from loramerge.files.json_values import read_values
from loramerge.files.tensors import Tensor

__all__ = [
    "is_transformers",
    "model_class",
    "model_config",
    "named_tensors",
    "renaming",
    "with_given",
]

_CONFIG = "config.json"
_PARAMETERS: tuple[Parameter, ...] = ("weight", "bias")


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


# levels that models of transformers have gained or lost at their heads from version to version, and with
# or without an output layer
_LEVELS = frozenset({"model", "language_model", "transformer"})


def renaming(modules: Iterable[str], known: Iterable[str]) -> Callable[[str], str]:
    """Return the function that renames modules of an adapter to those of a base: as they are, or
    with other first levels.

    Where one level less or more fits all modules, that is it. Else each module has the one name in the
    base that differs from its own by levels such as `model.` and `language_model.` alone: what
    transformers calls `model.language_model.layers.0` is `model.layers.0` in the published files of some
    models that also see, and `model.visual` is `visual`.

    Args:
        modules: the adapter's.
        known: all of the base's.
    """
    wanted, there = list(modules), dict.fromkeys(known)
    levels = dict.fromkeys(name.partition(".")[0] for name in there)
    options: list[Callable[[str], str]] = [
        lambda name: name,
        lambda name: name.partition(".")[2],
        *(lambda name, level=level: f"{level}.{name}" for level in levels),
    ]
    for option in options:
        if all(option(name) in there for name in wanted):
            return option
    cores: dict[str, list[str]] = {}
    for name in there:
        cores.setdefault(_without_levels(name), []).append(name)

    def alike(name: str) -> str:
        found = [name] if name in there else cores.get(_without_levels(name), [])
        return found[0] if len(found) == 1 else name

    return alike


def _without_levels(name: str) -> str:
    """Return a name from its first level that does not come and go."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in _LEVELS:
        parts.pop(0)
    return ".".join(parts)


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
