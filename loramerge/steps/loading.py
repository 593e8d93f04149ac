"""Progress while packages are imported that take seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from loramerge.events import Notify, Progress

__all__ = ["loading_torch"]


@contextmanager
def loading_torch(notify: Notify) -> Iterator[None]:
    """Report progress around imports of torch; say nothing if it is there already."""
    if "torch" in sys.modules:
        yield
        return
    notify(Progress("loading torch", 0, 1, "packages"))
    yield
    notify(Progress("loading torch", 1, 1, "packages"))
