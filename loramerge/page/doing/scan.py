"""Bring the index of the library up to date."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loramerge.events import Notify
from loramerge.library.index import open_index
from loramerge.library.scanning import scan

__all__ = ["do"]


def do(request: Mapping[str, Any], notify: Notify) -> Any:
    """Index `folders`; return the JSON of `library scan`.

    Raises:
        LoramergeError: of the scan.
    """
    with open_index() as index:
        return scan(index, [Path(folder) for folder in request["folders"]], notify=notify).json()
