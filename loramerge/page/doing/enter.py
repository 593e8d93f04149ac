"""Enter one file in the index, so that one's own words on it can be kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loramerge.events import Notify
from loramerge.library.index import open_index
from loramerge.library.scanning import scan_file

__all__ = ["do"]


def do(request: Mapping[str, Any], notify: Notify) -> int | None:
    """Return the content of the file at `path`, which is indexed if it is new.

    Raises:
        LoramergeError: if it cannot be read.
    """
    with open_index() as index:
        return scan_file(index, Path(request["path"])).content
