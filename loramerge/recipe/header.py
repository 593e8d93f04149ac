"""The recipe in the header of a file that loramerge, or supermerger, wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from loramerge import __version__
from loramerge.adapter.metadata import RECIPE_KEY, VERSION_KEY
from loramerge.adapter.source import open_source
from loramerge.checkpoint.files import find_files
from loramerge.errors import FormatError, LoramergeError, MissingFile, RecipeError
from loramerge.files.forms import is_gguf
from loramerge.library.hints import elsewhere
from loramerge.recipe.supermerger import recipe_of as supermerger_recipe
from loramerge.steps.provenance import recipe_in

__all__ = ["is_output", "recipe_of_file"]


def is_output(path: Path) -> bool:
    """Return whether a path names an output, rather than a recipe."""
    return path.is_dir() or path.suffix.lower() in (".safetensors", ".gguf")


def recipe_of_file(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the recipe in a file's header, and notes on missing information.

    The metadata of sd-webui-supermerger is read as a recipe, too.

    Raises:
        RecipeError: if there is no recipe in the header.
        LoramergeError: if the file cannot be read.
    """
    if not path.exists():
        near = elsewhere(path)
        hint = f"there is {near}" if near else None
        raise MissingFile("no such file", file=path, hint=hint)
    for metadata in _headers(path):
        if RECIPE_KEY in metadata:
            found = recipe_in(metadata)
            if found is None:
                raise RecipeError("the recipe in the header cannot be read", file=path)
            version = metadata.get(VERSION_KEY, __version__)
            notes = []
            if version != __version__:
                notes.append(f"written by loramerge {version}; this is {__version__}")
            return found, notes
        merged = supermerger_recipe(metadata)
        if merged is not None:
            return merged
    raise RecipeError(
        "the header holds no recipe that made this file",
        file=path,
        expected=f"metadata {RECIPE_KEY}, which loramerge writes by default",
    )


def _headers(path: Path) -> Iterator[Mapping[str, str]]:
    """Yield the metadata of a file, or of every file of weights in a folder."""
    if path.is_dir() or is_gguf(path):
        with suppress(LoramergeError):
            for file in find_files(path).weights:
                yield file.open()[1]
    with suppress(FormatError):
        yield open_source(path).metadata
