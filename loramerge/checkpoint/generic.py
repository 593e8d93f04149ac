"""Bases of no known family: a folder that transformers can load, by the names in its files.

PEFT names the modules it adapts as the model does, and so does the checkpoint, but for the level that a
head adds (`transformer.h.0…` with one, `h.0…` without).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from loramerge.checkpoint.files import CheckpointFile, CheckpointFiles
from loramerge.families import Parameter
from loramerge.files.json_values import read_values
from loramerge.files.tensors import Tensor

__all__ = ["is_transformers", "model_class", "named_tensors", "renaming"]

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
    """Return (module, parameter) → where it lies, for every weight and bias of the files."""
    found: dict[tuple[str, Parameter], tuple[CheckpointFile, Tensor, str]] = {}
    for file in files.weights:
        for name, tensor in file.open()[0].items():
            module, _, word = name.rpartition(".")
            for parameter in _PARAMETERS:
                if module and word == parameter:
                    found[module, parameter] = (file, tensor, name)
    return found


def renaming(modules: Iterable[str], known: Iterable[str]) -> Callable[[str], str]:
    """Return how modules of an adapter are called in a base: as they are, or one level less or more.

    Args:
        modules: the adapter's.
        known: all of the base's.
    """
    wanted, there = list(modules), set(known)
    levels = dict.fromkeys(name.partition(".")[0] for name in there)
    options: list[Callable[[str], str]] = [
        lambda name: name,
        lambda name: name.partition(".")[2],
        *(lambda name, level=level: f"{level}.{name}" for level in levels),
    ]
    return next((o for o in options if all(o(name) in there for name in wanted)), options[0])
