"""A page of `loramerge ui` in Chromium: the server as a process, what the browser said and asked for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Opened", "opened", "served"]

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE = 120_000  # milliseconds; torch is loaded slowly where much else runs
_DRAWN = """() => new Promise((done) => {
  const node = document.querySelector(".preview");
  const look = () => node.dataset.state === "drawn" && (watch.disconnect(), done());
  const watch = new MutationObserver(look);
  watch.observe(node, {attributes: true});
  look();
})"""


@contextmanager
def served(folder: Path, home: Path) -> Iterator[str]:
    """Run `loramerge ui` in a folder; yield the page's address with its token."""
    environment = {
        **os.environ,
        "LORAMERGE_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "loramerge", "ui", "--no-browser"]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        try:
            assert process.stdout is not None
            yield next(found.group() for line in process.stdout if (found := _ADDRESS.search(line)))
        finally:
            process.terminate()
            process.communicate(timeout=60)


_ADDRESS = re.compile(r"http://\S+")


@dataclass
class Opened:
    """A tab.

    Args:
        said: console messages, errors and dialogs.
        elsewhere: requests to another host.
    """

    view: Any
    address: str
    said: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def go(self, route: str) -> None:
        """Show another view, and wait until it is there."""
        self.view.goto(f"{self.address}#/{route}")
        name = route.partition("?")[0]
        self.view.locator(f'.view-root[data-view="{name}"]').wait_for()

    def drawn(self) -> dict[str, Any]:
        """Wait until the preview shows what the sliders say; return what was asked for."""
        self.view.locator(".preview").wait_for()
        self.view.evaluate(_DRAWN)
        found: dict[str, Any] = self.view.evaluate(
            "JSON.parse(document.querySelector('.preview').dataset.drawn).values"
        )
        return found

    @property
    def is_wide(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(self.view.evaluate("document.documentElement.scrollWidth - innerWidth"))


@contextmanager
def opened(
    browser: Any,
    address: str,
    route: str = "library",
    *,
    size: tuple[int, int] = (1280, 800),
    scheme: str = "light",
    answers: Mapping[str, Any] | None = None,
    **more: Any,
) -> Iterator[Opened]:
    """Open the page in a fresh browser profile.

    Args:
        answers: path of the API → what is answered instead: JSON, or a function of the request.
    """
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, **more
    )
    context.set_default_timeout(_PATIENCE)
    tab = Opened(context.new_page(), address)
    host = urlsplit(address).netloc

    def asked(request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != host:
            tab.elsewhere.append(request.url)

    tab.view.on("console", lambda message: tab.said.append(f"{message.type}: {message.text}"))
    tab.view.on("pageerror", lambda error: tab.said.append(f"error: {error}"))
    tab.view.on("dialog", lambda dialog: tab.said.append(f"dialog: {dialog.message}"))
    tab.view.on("request", asked)
    for path, content in (answers or {}).items():
        _answer(tab.view, host, path, content)
    try:
        tab.go(route)
        yield tab
    finally:
        context.close()


def _answer(view: Any, host: str, path: str, content: Any) -> None:
    def answer(route: Any) -> None:
        found = content(route.request) if callable(content) else content
        route.fulfill(json=found)

    view.route(re.compile(rf"^http://{re.escape(host)}{re.escape(path)}(\?|$)"), answer)
