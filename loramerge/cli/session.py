"""Events on the terminal: progress bars while something runs, notes, warnings, and results of parts."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from loramerge.cli.show import complaint
from loramerge.errors import on_command_line, spelled
from loramerge.events import Event, Finished, Note, Progress, Warn

__all__ = ["Session"]


class Session:
    """Shows the events of one command.

    Results of its parts go to standard output, all others to standard error. Events may come from
    several threads.

    Args:
        quiet: show warnings only.
        finished: shows the result of a part that has ended; None does not show it.
    """

    def __init__(
        self, *, quiet: bool = False, finished: Callable[[Finished], None] | None = None
    ) -> None:
        self.quiet = quiet
        self._finished = finished
        self._unshown: OSError | None = None
        self._one_at_a_time = threading.RLock()
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._said: set[str] = set()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop_bars()
        if self._unshown is not None and error is None:
            raise self._unshown

    def notify(self, event: Event) -> None:
        """Show an event."""
        with self._one_at_a_time:
            if isinstance(event, Progress):
                self._progress(event)
            elif isinstance(event, Warn):
                self._line("warning", spelled(event.text, on_command_line))
            elif isinstance(event, Note) and not self.quiet:
                self._line("note", spelled(event.text, on_command_line))
            elif isinstance(event, Finished) and self._finished is not None:
                self._show(event)

    def _show(self, event: Finished) -> None:
        """Show the result of a part now, also where standard output is a file or a pipe.

        Work that is under way does not end because its results cannot be shown, as on a full disk; the
        error comes afterwards.
        """
        assert self._finished is not None
        self._stop_bars()  # while they are drawn, rich sends standard output to standard error
        try:
            self._finished(event)
            sys.stdout.flush()
        except OSError as error:
            self._unshown, self._finished = error, None

    def _stop_bars(self) -> None:
        """Remove the bars; the next progress draws those that are needed again."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()

    def _line(self, word: str, text: str) -> None:
        if text in self._said:
            return
        self._said.add(text)
        if self._bars is not None:
            self._bars.console.print(complaint(f"{word}: {text}"), markup=False, highlight=False)
        else:
            print(complaint(f"{word}: {text}"), file=sys.stderr)  # noqa: T201

    def _progress(self, event: Progress) -> None:
        if self.quiet or not sys.stderr.isatty():
            return
        if self._bars is None:
            self._bars = _bars()
            self._bars.start()
        task = self._tasks.get(event.task)
        if task is None:
            task = self._tasks[event.task] = self._bars.add_task(
                event.task, total=event.total, said=""
            )
        if event.done >= event.total:  # a run of many tasks has room for those under way
            self._bars.remove_task(self._tasks.pop(event.task))
            return
        self._bars.update(task, completed=event.done, total=event.total, said=event.said)


def _bars() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        SpinnerColumn(
            "line"
        ),  # turns while nothing else moves; of characters that all terminals have
        TextColumn("{task.description}", markup=False),  # `[w=0.5]` is no style
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
