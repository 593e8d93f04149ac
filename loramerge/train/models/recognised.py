"""The architecture of a base, of which only the index of the folder is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loramerge.errors import CorruptFile, FormatError, UsageError
from loramerge.files.forms import is_gguf
from loramerge.files.json_values import read_values
from loramerge.train.models.architecture import Architecture
from loramerge.train.models.registry import (
    architecture_of_family,
    architecture_of_pipeline,
    known_architectures,
)

__all__ = ["architecture_at", "architecture_of_index", "index_of"]


def architecture_at(path: Path, family: str | None = None) -> Architecture:
    """Return the kind of a base, of which only the index is read.

    Args:
        family: of a single file.

    Raises:
        UsageError, FormatError, CorruptFile: as `load_pipeline`.
    """
    if path.is_dir():
        return architecture_of_index(index_of(path), path)
    if is_gguf(path):
        raise FormatError(
            "a GGUF base can be baked into and merged, but not trained on or previewed",
            file=path,
            hint="give the safetensors model or the diffusers folder that it was made from",
        )
    found = architecture_of_family(family)
    if found is None:
        whose = "single files of this family" if family else "a file of no known family"
        raise UsageError(
            f"{whose} can be neither trained on nor previewed",
            file=path,
            expected=", ".join(name for one in known_architectures() for name in one.families),
            found=family,
            hint="give a diffusers folder, which Flux.1 and SD3 need",
        )
    return found


def index_of(path: Path) -> Mapping[str, Any]:
    """Return the index of a diffusers folder.

    Raises:
        FormatError: if the folder has none. CorruptFile: if it cannot be read.
    """
    try:
        content = read_values(path / "model_index.json")
        assert isinstance(content, dict)
    except FileNotFoundError:
        raise FormatError(
            "this folder is not a diffusers pipeline",
            file=path,
            expected="model_index.json, and a folder for each model",
        ) from None
    except (OSError, ValueError, AssertionError):
        raise CorruptFile("the index of the pipeline cannot be read", file=path) from None
    return content


def architecture_of_index(index: Mapping[str, Any], path: Path) -> Architecture:
    """Return the architecture that the index of a diffusers folder names.

    Raises:
        UsageError: if it cannot be trained here.
    """
    name = index.get("_class_name")
    found = architecture_of_pipeline(name)
    if found is None:
        raise UsageError(
            "this kind of model cannot be trained yet",
            file=path,
            expected=", ".join(name for one in known_architectures() for name in one.pipelines),
            found=name,
        )
    return found
