"""Interruptions: signals that end a process do it as Ctrl-C does, so that nothing half-written stays."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

__all__ = [
    "ENDING", "begin_interruptible", "deferred", "end_interruptible", "interrupt", "not_raised", "stop",
]  # fmt: skip

ENDING = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows lacks the last


def begin_interruptible(again: Callable[[], None] | None = None) -> None:
    """Let signals that end a process raise KeyboardInterrupt, wherever it may be.

    Those that are ignored stay so, as under `nohup`.

    Args:
        again: see `not_raised`.
    """
    for name in ENDING[1:]:
        number: Any = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, stop)
    sys.unraisablehook = lambda what: not_raised(what, again)


def not_raised(what: Any, again: Callable[[], None] | None = None) -> None:
    """Stop a moment later where an interruption came while Python could not raise it.

    That is so in callbacks of weak references, which importing has, and in finalizers.

    Args:
        again: called then; None interrupts the main thread once more.
    """
    if what.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(what)
        return
    import threading

    threading.Timer(0.01, again or _once_more).start()


def end_interruptible() -> None:
    """Let signals end the process at once: the work is done, and libraries that shut down would answer
    with tracebacks."""
    for name in ENDING:
        number: Any = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (stop, signal.default_int_handler):
            signal.signal(number, signal.SIG_DFL)


def stop(number: int, frame: Any) -> NoReturn:
    """End as Ctrl-C does, so that no half-written file stays."""
    raise KeyboardInterrupt


@contextmanager
def deferred(*, insistent: bool = True) -> Iterator[Callable[[], bool]]:
    """Hold signals back until the end of the block, and give a function that says if there was one.

    Only Python's own handlers are held back, and only where a process may set handlers: in its main
    thread.

    Args:
        insistent: whether a second signal is obeyed at once.
    """
    import threading

    came: list[tuple[int, Any]] = []
    before: dict[int, Any] = {}

    def hold(number: int, frame: Any) -> None:
        if came and insistent:
            before[number](number, frame)
        came.append((number, frame))

    try:
        if threading.current_thread() is threading.main_thread():
            for name in ENDING:
                number: Any = getattr(signal, name, None)
                handler = None if number is None else signal.getsignal(number)
                if callable(handler):
                    before[number] = handler
                    signal.signal(number, hold)
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number, frame in came[:1]:
        before[number](number, frame)


def interrupt() -> None:
    """Interrupt the main thread from another one, also where it waits for a lock or the disk."""
    import _thread
    import threading

    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()


def _once_more() -> None:
    """Interrupt the main thread, unless it has done its work by now."""
    import _thread

    known = signal.getsignal(signal.SIGTERM) is stop
    _thread.interrupt_main(signal.SIGTERM if known else signal.SIGINT)
