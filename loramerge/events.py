"""Events that a running operation reports: progress, notes, warnings, and results of its parts.

Operations take `notify`, a function of one event, and call it; they never print. The command line
shows events with rich, the Python interface ignores them by default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loramerge.errors import Message
from loramerge.records import record

__all__ = ["Event", "Finished", "Note", "Notify", "Progress", "Warn", "ignore"]


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


@record
class Finished:
    """A part of an operation has ended, while others are still to come.

    Args:
        name: of the part: a task of a recipe, a step of the tour.
        result: of the part; its type is the operation's.
    """

    name: str
    result: Any


Event = Progress | Note | Warn | Finished
Notify = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Ignore the event."""
