"""Folders of what is built once for each process."""

from __future__ import annotations

import atexit
import shutil
from pathlib import Path
from tempfile import mkdtemp

__all__ = ["folder_of_process"]


def folder_of_process(name: str) -> Path:
    """Make a folder that is removed when this process ends."""
    folder = Path(mkdtemp(prefix=f"loramerge-{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
