"""The nodes there are: one file each, in `nodes/`."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from loramerge.comfyui import nodes
from loramerge.comfyui.node import Node

__all__ = ["known_nodes"]


@cache
def known_nodes() -> tuple[Node, ...]:
    """Return all nodes, in the order of the menu."""
    names = (info.name for info in iter_modules(nodes.__path__))
    found = (import_module(f"{nodes.__name__}.{name}").NODE for name in names)
    return tuple(sorted(found, key=lambda one: (one.order, one.name)))
