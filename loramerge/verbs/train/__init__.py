"""Train an adapter on images.

`VERB` is imported only when it is used, so that the parameters can be read without its imports.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["VERB"]


def __getattr__(name: str) -> Any:
    if name != "VERB":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.run").VERB
