"""loramerge: adapter algebra for diffusion models.

Layers, each importing only those to its right: `cli` → `api` → `recipe` → `verbs` → `library` →
`stream` → `algebra` → `adapter`, `checkpoint` → `dialects` → `families` → `files` → `errors`,
`events`. The names below are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "Adapter": "loramerge.api",
    "LoramergeError": "loramerge.errors",
    "Weight": "loramerge.algebra.weights",
    "bake": "loramerge.api",
    "convert": "loramerge.api",
    "diff": "loramerge.api",
    "inspect": "loramerge.api",
    "load": "loramerge.api",
    "mix": "loramerge.api",
    "resize": "loramerge.api",
    "run": "loramerge.api",
    "save": "loramerge.api",
}

__all__ = [
    "Adapter",
    "LoramergeError",
    "Weight",
    "__version__",
    "bake",
    "convert",
    "diff",
    "inspect",
    "load",
    "mix",
    "resize",
    "run",
    "save",
]

if TYPE_CHECKING:
    from loramerge.adapter import Adapter
    from loramerge.algebra.weights import Weight
    from loramerge.api import bake, convert, diff, inspect, load, mix, resize, run, save
    from loramerge.errors import LoramergeError


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
