"""train: an adapter from images.

`VERB` is found here by recipes; what it needs is imported when it is asked for, so that the
parameters alone cost nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["VERB"]


def __getattr__(name: str) -> Any:
    if name != "VERB":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.run").VERB
