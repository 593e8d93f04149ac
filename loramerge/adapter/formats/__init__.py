"""Containers: the metadata and configurations of files. Metadata, configurations, folders, pickles.

One file each, loading and saving: `kohya`, `diffusers`, `peft`, `lora_diffusion`, `gguf`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from loramerge.dialects import Dialect

if TYPE_CHECKING:
    from loramerge.adapter.formats.container import Container

__all__ = ["container_of"]


def container_of(dialect: Dialect) -> Container:
    """Return the container of a dialect."""
    return _container(dialect.container)


@cache
def _container(name: str) -> Container:
    if name == "plain":
        plain: Container = import_module("loramerge.adapter.formats.container").Container()
        return plain
    found: Container = import_module(f"loramerge.adapter.formats.{name}").CONTAINER
    return found
