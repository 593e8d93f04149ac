"""Named bases, folders of adapters, the lookup of names, and the index of files.

The functions below are the commands of `loramerge library` in Python, as `lm.library.search("style")`.
They are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in `loramerge`
if TYPE_CHECKING:
    from typing import Any

    from loramerge.library.functions import (
        duplicates,
        note,
        rate,
        scan,
        search,
        show,
        similar,
        tag,
    )

__all__ = ["duplicates", "note", "rate", "scan", "search", "show", "similar", "tag"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("loramerge.library.functions"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
