"""Interruptions: a signal is Ctrl-C, whoever sends it and whatever Python does at that moment."""

from __future__ import annotations

import signal
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from loramerge import interruption


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Any:
    numbers = [getattr(signal, n) for n in interruption.ENDING if hasattr(signal, n)]
    before = [(number, signal.getsignal(number)) for number in numbers]
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    yield
    for number, handler in before:
        signal.signal(number, handler)


def test_an_ignored_signal_stays_so_and_others_interrupt() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interruption.begin_interruptible()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    if hasattr(signal, "SIGHUP"):
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    interruption.end_interruptible()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_another_thread_interrupts_what_waits() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    lock = threading.Lock()
    lock.acquire()
    threading.Timer(0.02, interruption.interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        lock.acquire(timeout=30)


def test_what_could_not_be_raised_is_asked_for_again() -> None:
    asked = threading.Event()
    interruption.begin_interruptible(asked.set)
    sys.unraisablehook(SimpleNamespace(exc_type=KeyboardInterrupt))
    assert asked.wait(30)
