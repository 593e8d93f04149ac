"""`python -m loramerge`, and what the command `loramerge` runs.

Python's own answer to Ctrl-C is a traceback. While the command line is imported, which takes a tenth
of a second, the process ends silently instead; nothing is written then.
"""

from __future__ import annotations

import gc
import signal

__all__ = ["entry"]


def entry() -> None:
    """Import the command line and run it."""
    # few cycles are made, in imports above all: collecting costs a tenth of an inspect
    gc.set_threshold(200_000)
    heeded = (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )  # not in a background job
    if heeded:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from loramerge.cli.main import console_entry

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    console_entry()


if __name__ == "__main__":
    entry()
