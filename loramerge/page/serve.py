"""Listening: the socket, the token, and the server until Ctrl-C."""

from __future__ import annotations

import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette

from loramerge.errors import FileError, UsageError
from loramerge.library.listings import keep_listings
from loramerge.page.places import Places
from loramerge.page.server import app_of
from loramerge.page.worker import LISTED_FOR

__all__ = ["PageServer", "listening", "serve"]

_ANY = ("", "0.0.0.0", "::", "*")
SILENCE = 30.0  # seconds that a connection may be open without a request
_OFTEN = 10  # ticks, of a tenth of a second


def serve(
    folder: Path, opened: Sequence[Path], host: str, port: int, ready: Callable[[str], None]
) -> None:
    """Serve the page until Ctrl-C, or until its terminal is closed.

    Args:
        folder: the current folder of everything that runs.
        opened: further folders and files that the page may use.
        port: 0 is a free one.
        ready: told the address with its token, once it can be opened.

    Raises:
        FileError: if the address cannot be listened on.
        UsageError: if it is not one address, by which the page could be asked for.
    """
    if host in _ANY:
        raise UsageError(
            f"--host {host} means every address of this computer, and the page answers by one name",
            hint="give the name or address by which you will open it",
        )
    keep_listings(LISTED_FOR)
    place = listening(host, port)
    port = place.getsockname()[1]
    names = {host, "localhost"} if host in ("127.0.0.1", "::1", "localhost") else {host}
    hosts = [f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in names]
    token = secrets.token_urlsafe(24)
    app = app_of(Places(folder, tuple(opened)), hosts, token)
    shown = f"[{host}]" if ":" in host else host
    PageServer(app, lambda: ready(f"http://{shown}:{port}/?token={token}")).run(sockets=[place])


class PageServer(uvicorn.Server):
    """The server of an application; it ends by Ctrl-C, a closed terminal, or a request of the system.

    Args:
        app: of `server.app_of`.
        ready: called when it can be asked.
    """

    def __init__(self, app: Starlette, ready: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                log_level="critical",  # answers say what is wrong
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_graceful_shutdown=1,
                lifespan="on",
            )
        )
        self._ready = ready
        self._end: Callable[[], None] = app.state.page.end
        self._silent: dict[Any, float] = {}  # connection → when it began to wait for a request

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._end()  # first, because it waits for streams, and for answers of the workers
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        if counter % _OFTEN == 0:
            self._drop_silent()
        return await super().on_tick(counter)

    def _drop_silent(self) -> None:
        """Close connections on which no whole request comes: somebody holds them to use them up."""
        now, before, self._silent = time.monotonic(), self._silent, {}
        for connection in list(self.server_state.connections):
            cycle: Any = getattr(connection, "cycle", None)
            if cycle is None or cycle.response_complete:
                self._silent[connection] = before.get(connection, now)
                if now - self._silent[connection] > SILENCE:
                    connection.transport.close()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals that end it; unlike uvicorn's own, it does not raise them again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers: list[Any] = [getattr(signal, name) for name in _ENDING if hasattr(signal, name)]
        numbers = [one for one in numbers if signal.getsignal(one) is not signal.SIG_IGN]  # `nohup`
        before = {one: signal.signal(one, self.handle_exit) for one in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


_ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # those that this system has


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address; port 0 is a free one.

    Raises:
        FileError: if that is not possible.
    """
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        if not hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows would share the port with others
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(256)
    except OSError as error:
        found.close()
        raise FileError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}",
            hint="give another --port",
        ) from None
    return found
