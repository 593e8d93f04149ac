"""Bring the index of the library up to date."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loramerge.events import Notify
from loramerge.library.functions import scan

__all__ = ["do"]


def do(request: Mapping[str, Any], notify: Notify) -> Any:
    """Index `folders`; return the JSON of `library scan`.

    Raises:
        LoramergeError: of the scan.
    """
    return scan(*request["folders"], notify=notify).json()
