"""Listening: the socket, the token, and the server until Ctrl-C."""

from __future__ import annotations

import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from loramerge.errors import FileError, UsageError
from loramerge.library.listings import keep_listings
from loramerge.page.places import Places
from loramerge.page.server import app_of
from loramerge.page.worker import LISTED_FOR

__all__ = ["serve"]


_ANY = ("", "0.0.0.0", "::", "*")


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
    listening = _listening(host, port)
    port = listening.getsockname()[1]
    names = {host, "localhost"} if host in ("127.0.0.1", "::1", "localhost") else {host}
    hosts = [f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in names]
    token = secrets.token_urlsafe(24)
    app = app_of(Places(folder, tuple(opened)), hosts, token)
    shown = f"[{host}]" if ":" in host else host
    server = _Server(
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
    server.end = app.state.page.end
    server.ready = lambda: ready(f"http://{shown}:{port}/?token={token}")
    server.run(sockets=[listening])


class _Server(uvicorn.Server):
    """Tells when it can be asked; ends by Ctrl-C, a closed terminal, or a request of the system."""

    ready: Callable[[], None]
    end: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.end()  # first, because it waits for streams, and for answers of the workers
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals that end it; unlike uvicorn's own, it does not raise them again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers: list[Any] = [getattr(signal, name, None) for name in _ENDING]
        before = {one: signal.signal(one, self.handle_exit) for one in numbers if one is not None}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


_ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # those that this system has


def _listening(host: str, port: int) -> socket.socket:
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
