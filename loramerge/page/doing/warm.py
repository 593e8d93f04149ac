"""Load what the first picture needs, while nothing else is to be done."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from typing import Any

from loramerge.events import Notify
from loramerge.library.shipped import SHIPPED_ADAPTERS, TINY
from loramerge.page.doing import preview

__all__ = ["do"]

_LEAST = 19  # the priority of a thread that runs when no other wants to


def do(request: Mapping[str, Any], notify: Notify) -> None:
    """Draw one step with the shipped base and adapters, in a thread of the least priority.

    Where a system knows priorities of processes only, it has the usual one: a process cannot raise its
    own again.

    Raises:
        LoramergeError: of `preview`.
    """
    errors: list[BaseException] = []

    def work() -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, 0, _LEAST)  # of this thread alone
        try:
            preview.do({"values": _VALUES}, notify)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


_VALUES = {
    "base": [TINY],
    "adapters": list(SHIPPED_ADAPTERS),
    "together": True,
    "no_base": True,
    "steps": 1,
}
