"""The command `ui`: open a page in the browser to do all of this by looking."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from threading import Thread

import click

from loramerge.cli import show
from loramerge.errors import MissingExtra, MissingFile


@click.command("ui", epilog="Example: loramerge ui ~/loras")
@click.argument("paths", metavar="[FOLDER|FILE]...", nargs=-1)
@click.option("--port", type=click.IntRange(0, 65535), default=0, metavar="N",
              help="Port to listen on [default: a free one].")  # fmt: skip
@click.option(
    "--host",
    default="127.0.0.1",
    metavar="ADDRESS",
    help="Address to listen on [default: 127.0.0.1]. With another one, whoever has the page's address "
    "can use your files.",
)
@click.option("--no-browser", is_flag=True, help="Print the address of the page, and open nothing.")
def command(paths: tuple[str, ...], port: int, host: str, no_browser: bool) -> None:
    """Open a local page: library, mix with a preview, resize, bake, merge, train, inspect, recipes.

    The page reads and writes in the current folder, in the library, and in each FOLDER or FILE given
    here. It ends with Ctrl-C. Its address holds a token; keep it to yourself.
    """
    from importlib.util import find_spec

    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise MissingExtra(
            "the page needs Starlette and uvicorn", hint="pip install 'loramerge[ui]'"
        )
    from loramerge.library.registry import expanded
    from loramerge.page.serve import serve

    opened = [expanded(path).absolute() for path in paths]
    for path in opened:
        if not path.exists():
            raise MissingFile("there is no such file or folder", file=path)

    def ready(address: str) -> None:
        show.line(f"The page is at {address}", wrap=False)
        show.line("Ctrl-C ends it; running jobs are stopped, and leave no half-written file.")
        sys.stdout.flush()  # a program may wait for the address
        if not no_browser:
            Thread(target=_open, args=(address,), daemon=True).start()

    serve(Path.cwd(), opened, host, port, ready)


_OPEN = "import sys, webbrowser; sys.exit(not webbrowser.open(sys.argv[1]))"


def _open(address: str) -> None:
    """Open a browser, in a process of its own: what programs print that look for one is noise."""
    silent = subprocess.DEVNULL
    words = [sys.executable, "-c", _OPEN, address]
    if subprocess.run(words, stdin=silent, stdout=silent, stderr=silent, check=False).returncode:
        show.line("No browser was found; open the address.")
        sys.stdout.flush()
