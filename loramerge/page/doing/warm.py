"""Load what the first picture needs, before anyone asks for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loramerge.events import Notify
from loramerge.library.shipped import SHIPPED_ADAPTERS, TINY
from loramerge.page.doing import preview

__all__ = ["do"]

_VALUES = {
    "base": [TINY],
    "adapters": list(SHIPPED_ADAPTERS),
    "together": True,
    "no_base": True,
    "steps": 1,
}


def do(request: Mapping[str, Any], notify: Notify) -> None:
    """Draw one step with the shipped base and adapters.

    It has the usual priority: a picture that is asked for meanwhile waits for it, and no process can
    raise its own priority again.

    Raises:
        LoramergeError: of `preview`.
    """
    preview.do({"values": _VALUES}, notify)
