"""A server of the page for tests: in a thread, or as a process of its own that can be killed."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

TOKEN = "x-loramerge-token"
_PATIENCE = 60.0  # seconds; only a broken server takes long


class Answer(NamedTuple):
    """An answer, its body read as JSON where it is."""

    status: int
    headers: dict[str, str]
    body: Any

    @property
    def error(self) -> str:
        """The text of the error in it."""
        return str(self.body["error"]["text"])


class Served:
    """A running server, and how to ask it.

    Args:
        address: host and port.
        folder: its current folder.
        app: the application, where it runs in this process.
    """

    def __init__(self, address: str, token: str, folder: Path, app: Any = None) -> None:
        self.address, self.token, self.folder, self.app = address, token, folder, app

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str | None] | None = None,
        raw: bytes | None = None,
    ) -> Answer:
        """Send a request with the token, unless `headers` has another one or None for it."""
        sent = {TOKEN: self.token, **(headers or {})}
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection(self.address, timeout=_PATIENCE)
        try:
            connection.putrequest(method, path, skip_host="host" in sent, skip_accept_encoding=True)
            for name, value in sent.items():
                if value is not None:
                    connection.putheader(name, value)
            connection.putheader("content-length", str(len(data or b"")))
            connection.endheaders(data)
            found = connection.getresponse()
            text = found.read()
        finally:
            connection.close()
        content: Any = text
        with suppress(ValueError):
            content = json.loads(text)
        return Answer(found.status, {k.lower(): v for k, v in found.getheaders()}, content)

    def raw(self, text: str) -> bytes:
        """Send a text as it is, and return the status of the answer."""
        host, port = self.address.split(":")
        with socket.create_connection((host, int(port)), timeout=_PATIENCE) as found:
            found.sendall(text.encode("latin-1"))
            return found.makefile("rb").readline().split()[1]

    def get(self, path: str, **more: Any) -> Answer:
        """Ask for a path."""
        return self.ask("GET", path, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> Answer:
        """Send JSON to a path."""
        return self.ask("POST", path, body, **more)

    def job(self, number: str) -> dict[str, Any]:
        """Return a job as it is now."""
        found: dict[str, Any] = next(j for j in self.get("/api/jobs").body if j["id"] == number)
        return found

    def until(self, number: str, *states: str) -> dict[str, Any]:
        """Return a job once it is in one of some states; in the end by default."""
        wanted = states or ("done", "failed", "cancelled", "stopped", "lost")
        return eventually(lambda: (j := self.job(number))["state"] in wanted and j)

    def start(self, verb: str, **values: Any) -> str:
        """Start a job and return its number."""
        found = self.post("/api/jobs", {"verb": verb, "values": values})
        assert found.status == 200, found
        return str(found.body["id"])


def eventually(found: Callable[[], Any]) -> Any:
    """Return the first result that is true; an error of the test if none comes."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(0.02)
    raise AssertionError("this never came")


@contextmanager
def served(folder: Path, *opened: Path, store: Path | None = None) -> Iterator[Served]:
    """Provide a server in a thread of this process."""
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from loramerge.page.places import Places
    from loramerge.page.serve import PageServer, listening
    from loramerge.page.server import app_of

    place = listening("127.0.0.1", 0)
    address = f"127.0.0.1:{place.getsockname()[1]}"
    app = app_of(Places(folder, opened), [address], "secret", store=store)
    started = threading.Event()
    server = PageServer(app, started.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
    thread.start()
    try:
        assert started.wait(_PATIENCE)
        yield Served(address, "secret", folder, app)
    finally:
        server.should_exit = True
        thread.join()


class Process(Served):
    """A server of `loramerge ui`, as a process."""

    def __init__(self, folder: Path, home: Path, *opened: Path) -> None:
        pytest.importorskip("uvicorn")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "loramerge", "ui", "--no-browser", *map(str, opened)],
            cwd=folder,
            env={**os.environ, "LORAMERGE_HOME": str(home)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://([^/]+)/\?token=(\S+)", line)
        assert found is not None, line
        super().__init__(found[1], found[2], folder)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(_PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait()
