"""The commands and the pictures of the guides: `python -m tests.docs.guides [NAME …]` draws them.

A guide is one story: its commands run one after the other, in a folder that is empty at the start, with
the adapters and bases that come with loramerge.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from loramerge.cli.main import main
from tests.cli.examples import Shown, blocks, named_files, shown_in

__all__ = ["GUIDES", "PICTURE", "commands_of", "run_guide"]

DOCS = Path(__file__).resolve().parents[2] / "docs"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
PICTURE = r"!\[[^\]]+\]\((\S+\.png)\)"  # and its text for those who do not see it


def commands_of(path: Path) -> Iterator[Shown]:
    """Yield the command lines of a document."""
    for block in blocks(path, "console"):
        yield from shown_in(block)


def run_guide(path: Path, shorten: Callable[[list[str]], list[str]] = list) -> None:
    """Run the commands of a guide in the current folder, with the files that it shows.

    Args:
        shorten: returns the words of a command as they are to be run.

    Raises:
        AssertionError: a command ends with another exit code than the guide says.
    """
    from loramerge.tiny.__main__ import main as tiny

    for name, text in named_files(path).items():
        Path(name).write_text(text, "utf-8")
    for shown in commands_of(path):
        words = shlex.split(shown.command)
        if words[:3] == ["python", "-m", "loramerge.tiny"]:
            code = tiny(words[3:])
        else:
            assert words[0] == "loramerge", shown.command
            code = main(shorten(words[1:]))
        assert code == shown.code, (shown.command, code)


def _draw(names: list[str]) -> None:
    for path in GUIDES:
        if names and path.stem not in names:
            continue
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            os.environ["LORAMERGE_HOME"] = str(Path(folder, "home"))
            run_guide(path)
            for picture in Path(folder).glob(f"{path.stem}.png"):
                shutil.copy(picture, path.parent / picture.name)


if __name__ == "__main__":
    _draw(sys.argv[1:])
