"""A process that computes for the page: lines of JSON in, lines of JSON out.

A request `{"id": 1, "do": "plan", …}` is answered by events `{"id": 1, "event": {…}}` and one result
`{"id": 1, "result": …}` or error. `{"stop": 1}` interrupts it as Ctrl-C does; so does the end of the
input, after which the process ends. What can be asked for is a module of `page.doing` with a function
`do(request, notify)`.
"""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NoReturn, TextIO

from loramerge.errors import LoramergeError, OutOfMemory, Setting, UsageError, in_recipe, spelled
from loramerge.events import Event, Finished, Note, Progress, Warn
from loramerge.files.json_values import values_in
from loramerge.files.temporary import remove_unfinished
from loramerge.interruption import begin_interruptible, interrupt
from loramerge.library.listings import keep_listings
from loramerge.library.shipped import by_name
from loramerge.page.labels import in_page

__all__ = ["LASTING", "LISTED_FOR", "error_json", "main", "plain"]

LASTING = "--lasting"  # for a process that answers many requests
LISTED_FOR = 5.0  # seconds for which such a process remembers the files of the library

_ONE_THREAD = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class _Worker:
    """Takes requests one after the other; `stop` reaches the one that runs.

    Lines are read and written by other threads, because an interruption comes in the main one only:
    no line is lost or cut.
    """

    def __init__(self, lines: TextIO, out: TextIO) -> None:
        self._lines, self._out = lines, out
        self._waiting: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._running: Any = None
        self._stopped: set[Any] = set()
        self._gently: set[Any] = set()  # those of them that stop where they tell of progress
        self._lock = threading.Lock()
        self._ending = False

    def run(self) -> None:
        """Answer requests until the input ends."""
        begin_interruptible(self._stop_running)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored behind a shell's `&`
        signal.signal(signal.SIGTERM, self._end)
        threading.Thread(target=self._read, daemon=True).start()
        writing = threading.Thread(target=self._write, daemon=True)
        writing.start()
        while not self._ending:
            try:
                request = self._waiting.get()
                if request is not None and not self._ending:
                    self._answer(request)
            except KeyboardInterrupt:  # it came between two requests
                continue
        self._said.put(None)
        writing.join()

    def _end(self, number: int, frame: Any) -> NoReturn:
        self._ending = True
        raise KeyboardInterrupt

    def _read(self) -> None:
        for line in self._lines:
            content = values_in(line)
            if "stop" in content:
                self._stop(content["stop"], gently=bool(content.get("gently")))
            else:
                self._waiting.put(content)
        # nobody listens any more; what libraries print must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        self._ending = True
        self._waiting.put(None)
        self._stop_running()

    def _write(self) -> None:
        heard = True
        while (text := self._said.get()) is not None:
            try:
                if heard:
                    self._out.write(text + "\n")
                    self._out.flush()
            except (OSError, ValueError):
                heard = False  # the server has ended; what runs is interrupted by the reader

    def _stop_running(self) -> None:
        with self._lock:
            if self._running is not None:
                interrupt()

    def _stop(self, number: Any, *, gently: bool = False) -> None:
        with self._lock:
            self._stopped.add(number)
            if gently:
                self._gently.add(number)
            elif number is not None and number == self._running:
                interrupt()

    def _answer(self, request: dict[str, Any]) -> None:
        number = request["id"]
        try:
            try:
                with self._lock:
                    self._running = number
                if number in self._stopped:
                    raise KeyboardInterrupt
                found = {"result": self._done(request)}
            finally:
                with self._lock:
                    self._running = None
        except KeyboardInterrupt:
            remove_unfinished()
            found = {"error": {"text": "stopped; no half-written file was left", "exit_code": 130}}
        except LoramergeError as error:
            found = {"error": error_json(error, _spelling(request))}
        except MemoryError:
            found = {"error": {"text": "there is too little memory", "exit_code": _TOO_LITTLE}}
        except OSError as error:
            text = f"{error.filename or 'the system'}: {error.strerror or error}"
            found = {"error": {"text": text, "exit_code": 3}}
        except Exception as error:  # a bug: the page says so
            if os.environ.get("LORAMERGE_TRACEBACK"):
                sys.excepthook(*sys.exc_info())
            text = f"bug: {type(error).__name__}: {error}"
            found = {"error": {"text": text, "exit_code": 70}}
        while True:
            try:
                self._say({"id": number, **found})
                return
            except KeyboardInterrupt:  # too late to stop anything; the second answer is ignored
                continue

    def _done(self, request: dict[str, Any]) -> Any:
        what = str(request["do"])
        name = f"loramerge.page.doing.{what}"
        known = what.isidentifier() and not what.startswith("_") and find_spec(name) is not None
        if not known:
            raise UsageError(f"the page cannot do {what!r}")

        def notify(event: Event) -> None:
            if request["id"] in self._gently:
                raise KeyboardInterrupt
            if isinstance(event, Finished):  # the result of the whole has it, too
                return
            self._say({"id": request["id"], "event": event_json(event, _spelling(request))})

        return import_module(name).do(request, notify)

    def _say(self, content: dict[str, Any]) -> None:
        self._said.put(json.dumps(plain(content), ensure_ascii=True, default=str))


_TOO_LITTLE = OutOfMemory.exit_code


Spell = Callable[[Setting], str]


def _spelling(request: Mapping[str, Any]) -> Spell:
    """Return how settings are spelled: as labels of the forms, of a recipe as it has them."""
    return in_recipe if request.get("do") == "recipe" else in_page


def event_json(event: Progress | Note | Warn, spell: Spell = in_page) -> dict[str, Any]:
    """Return an event as the page gets it."""
    if isinstance(event, Progress):
        return {"kind": "progress", **{n: getattr(event, n) for n in _PROGRESS}}
    kind = "warning" if isinstance(event, Warn) else "note"
    return {"kind": kind, "text": by_name(spelled(event.text, spell))}


_PROGRESS = ("task", "done", "total", "unit", "said")


def error_json(error: LoramergeError, spell: Spell = in_page) -> dict[str, Any]:
    """Return an error as the page gets it; settings are spelled as the forms label them.

    `advises` has the names of the settings in its hint.
    """
    hint = None if error.hint is None else by_name(spelled(error.hint, spell))
    text = by_name(error.text(spell))
    if hint is not None:
        text = text.removesuffix(f"\n  hint: {hint}")
    parts = () if error.hint is None or isinstance(error.hint, str) else error.hint
    advises = [part.name for part in parts if isinstance(part, Setting)]
    return {"text": text, "hint": hint, "exit_code": error.exit_code, "advises": advises}


def plain(value: Any) -> Any:
    """Return a value that every JSON reader takes: no NaN or infinity, text keys."""
    if isinstance(value, dict):
        return {f"{k:g}" if isinstance(k, float) else str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def main() -> None:
    """Answer on standard output, which nothing else may write to."""
    for name in _ONE_THREAD:  # as on the command line: our own pool does the rest
        os.environ.setdefault(name, "1")
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if LASTING in sys.argv:
        keep_listings(LISTED_FOR)
    lines = os.fdopen(os.dup(sys.stdin.fileno()), "r", encoding="utf-8")
    _Worker(lines, out).run()


if __name__ == "__main__":
    main()
