"""Another package, as pip would install it: one file and its entry point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import loramerge

__all__ = ["Outside"]

_ROOT = Path(loramerge.__file__).parents[1]


class Outside:
    """A folder of packages with one made-up thing, and commands that run with it.

    Args:
        folder: where commands run; the package lies below it.
        group, attribute: of the entry point.
        text: of the file.
    """

    def __init__(self, folder: Path, group: str, attribute: str, text: str) -> None:
        self.folder, self.site = folder, folder / "site"
        info = self.site / "made_up-1.0.dist-info"
        info.mkdir(parents=True)
        (self.site / "made_up.py").write_text(text, "utf-8")
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\nmade-up = made_up:{attribute}\n")

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run a command; return what it printed."""
        done = self._done(*arguments)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def refused(self, code: int, *arguments: str) -> str:
        """Run a command that must fail with a code; return its message."""
        done = self._done(*arguments)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr

    def _done(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "loramerge", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join((str(self.site), str(_ROOT))),
                "LORAMERGE_HOME": str(self.folder / "home"),
                "COLUMNS": "200",
            },
        )

    def json(self, *arguments: str) -> Any:
        """Run a command; return what it gives as JSON."""
        return json.loads(self.run(*arguments, "--json"))
