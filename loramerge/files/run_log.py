"""The log of a training run, as it is read: one line of JSON for each step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loramerge.files.json_values import values_in

__all__ = ["read_log"]


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of a log; a line that a killed process left half written is none."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            entry = values_in(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "step" in entry:
            yield entry
