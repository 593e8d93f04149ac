"""Live computing: workers that stay, and requests of which the newest replaces the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from loramerge.errors import LoramergeError
from loramerge.page.places import Places
from loramerge.page.processes import Listener, WorkerError, WorkerProcess

__all__ = ["Live", "Replaced"]

# what is asked for → the worker that does it: no plan waits for a picture or a long report, and what
# headers say waits for none of them
_WORKERS: Mapping[str, str] = {
    "plan": "plans",
    "describe": "headers",
    "output": "headers",
    "preview": "pictures",
    "warm": "pictures",
}
_TORCH = ("preview", "train")  # verbs whose plans need torch, which one process is to load
_OTHERS = "readings"
_SHOWN_EVERY = 0.1  # seconds between two messages of progress
_STOPPED = 130  # exit code of what was interrupted


def _worker_of(request: Mapping[str, Any]) -> str:
    if request["do"] != "output" and request.get("verb") in _TORCH:
        return "pictures"
    return _WORKERS.get(str(request["do"]), _OTHERS)


class Replaced(LoramergeError):
    """A newer request with the same key came before this one was answered."""


class _Seat:
    """A worker that answers one request at a time.

    Args:
        key: of the request that runs; empty for one that nothing replaces.
        number: of the request that runs, as the process counts them.
    """

    def __init__(self, places: Places) -> None:
        self.process = WorkerProcess(places, lasting=True)
        self.turn = asyncio.Lock()
        self.key = ""
        self.number = 0

    def give_way(self, key: str) -> None:
        """Stop the request that runs, at its next step, if it has this key."""
        if key and key == self.key:
            self.process.stop(self.number, gently=True)


class Live:
    """The workers that stay. Each is started when it is first asked.

    Args:
        places: what they may use.
        tell: told of progress, as `live` with the key of the request.
    """

    def __init__(self, places: Places, tell: Callable[[str, Any], None]) -> None:
        self._tell = tell
        self._seats = {name: _Seat(places) for name in {*_WORKERS.values(), _OTHERS}}
        self._newest: dict[str, object] = {}
        self._warmed: asyncio.Task[None] | None = None

    async def ask(self, request: Mapping[str, Any], key: str = "", *, told_as: str = "") -> Any:
        """Return the answer to a request.

        Args:
            request: `do` says what is asked for.
            key: requests with the same one replace each other; empty for one that stays.
            told_as: name under which progress is told; empty is the key.

        Raises:
            Replaced: by a newer request.
            WorkerError: what it met. WorkerEnded: if the process ended; the next request starts another.
        """
        seat = self._seats[_worker_of(request)]
        mine = object()
        if key:
            self._newest[key] = mine
            seat.give_way(key)

        def replaced() -> bool:
            return bool(key) and self._newest.get(key) is not mine

        try:
            async with seat.turn:  # those that were replaced meanwhile never start
                if replaced():
                    raise Replaced("a newer request took its place")
                seat.number, answer = seat.process.begin(request, self._listener(told_as or key))
                seat.key = key
                try:
                    return await answer
                finally:
                    seat.key = ""
        except WorkerError as error:
            if error.exit_code == _STOPPED and replaced():
                raise Replaced("a newer request took its place") from None
            raise
        finally:
            if key and not replaced():
                del self._newest[key]

    def _listener(self, key: str) -> Listener:
        shown = 0.0

        def listen(event: dict[str, Any]) -> None:
            nonlocal shown
            now = time.monotonic()
            if key and event.get("kind") == "progress" and now - shown >= _SHOWN_EVERY:
                shown = now
                self._tell("live", {**event, "key": key})

        return listen

    def warm(self, delay: float) -> None:
        """Load what the first name and the first picture need, once; what is asked for goes first.

        Args:
            delay: seconds before that of the picture.
        """
        if self._warmed is None:
            self._warmed = asyncio.create_task(self._warm(delay))

    async def _warm(self, delay: float) -> None:
        with suppress(LoramergeError):  # the first name and the first picture say it better
            await self.ask({"do": "output", "verb": "mix", "values": {"adapters": ["zuzu"]}})
        await asyncio.sleep(delay)
        with suppress(LoramergeError):
            await self.ask({"do": "warm"})

    def process_of(self, what: str) -> WorkerProcess:
        """Return the process that does something."""
        return self._seats[_worker_of({"do": what})].process

    def let_go(self) -> None:
        """Interrupt what runs; the processes end by themselves."""
        if self._warmed is not None:
            self._warmed.cancel()
        for seat in self._seats.values():
            seat.process.let_go()

    def wait(self, patience: float) -> None:
        """Wait a while for the end of all processes that were let go."""
        end = time.monotonic() + patience
        for seat in self._seats.values():
            seat.process.wait(max(0.0, end - time.monotonic()))
