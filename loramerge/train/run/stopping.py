"""Ctrl-C during a step: the step is finished first, so that what is trained is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["deferred"]

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # those that somebody handles by then


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Hold signals back until the end of the block, and give a function that says if there was one.

    A second signal is obeyed at once. Only Python's own handlers are held back, and only where a
    process may set handlers: in its main thread.
    """
    came: list[tuple[int, Any]] = []
    before: dict[int, Any] = {}

    def hold(number: int, frame: Any) -> None:
        if came:
            before[number](number, frame)
        came.append((number, frame))

    if threading.current_thread() is threading.main_thread():
        for name in _SIGNALS:
            number: Any = getattr(signal, name, None)  # Windows lacks one
            handler = None if number is None else signal.getsignal(number)
            if callable(handler):
                before[number] = handler
                signal.signal(number, hold)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number, frame in came[:1]:
        before[number](number, frame)
