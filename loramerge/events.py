"""Events that a running operation reports: progress, notes and warnings.

Operations take `notify`, a function of one event, and call it; they never print. The command line
shows events with rich, the Python interface ignores them by default.
"""

from __future__ import annotations

from collections.abc import Callable

from loramerge.errors import Message
from loramerge.records import record

__all__ = ["Event", "Note", "Notify", "Progress", "Warn", "ignore"]


@record
class Progress:
    """`done` of `total` units (modules or bytes) of `task` are finished.

    Args:
        said: what else is to be shown of it, such as the loss.
    """

    task: str
    done: int
    total: int
    unit: str = "modules"
    said: str = ""


@record
class Note:
    """Something worth knowing that needs no action."""

    text: Message


@record
class Warn:
    """Something that probably needs attention."""

    text: Message


Event = Progress | Note | Warn
Notify = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Ignore the event."""
