"""Enter one file in the index, so that one's own words on it can be kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loramerge.events import Notify
from loramerge.library.functions import show

__all__ = ["do"]


def do(request: Mapping[str, Any], notify: Notify) -> int:
    """Return the content of the file at `path`, which is indexed if it is new.

    Raises:
        LoramergeError: if it cannot be read.
    """
    return show(str(request["path"])).content
