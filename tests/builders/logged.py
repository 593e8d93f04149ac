"""The warnings that other packages log while something is done."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def logged(package: str) -> Iterator[list[str]]:
    """Collect the warnings and errors that a package logs, whether it hands them on or not."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler, logger = Collector(logging.WARNING), logging.getLogger(package)
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
