"""The files of the library folders, remembered for a moment.

A command looks up a few names and ends. A process that answers many requests would walk through all
folders for each of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loramerge.library.lookup import list_names_by, names_in_library
from loramerge.library.registry import NameRegistry

__all__ = ["Listings", "keep_listings"]


class Listings:
    """The result of `names_in_library`, made anew after some seconds, or when the folders change.

    A name that is not found is looked for again in a new listing; see `lookup.find`.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._known: dict[str, tuple[float, Any, Sequence[tuple[str, Path]]]] = {}

    def __call__(self, registry: NameRegistry, holds: str) -> Sequence[tuple[str, Path]]:
        now, folders = time.monotonic(), tuple(registry.folders)
        made, of, found = self._known.get(holds, (0.0, None, ()))
        if of != folders or now - made > self._seconds:
            found = list(names_in_library(registry, holds))
            self._known[holds] = (now, folders, found)
        return found

    def forget(self) -> None:
        """List the folders again the next time."""
        self._known.clear()


def keep_listings(seconds: float) -> None:
    """Remember the files of the library folders in this process.

    Args:
        seconds: for which a listing is taken as it was, where it has the name.
    """
    list_names_by(Listings(seconds))
