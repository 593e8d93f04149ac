"""Reports beside a result (JSON, tables): they replace older reports, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import Any

from loramerge.errors import OutputExists
from loramerge.files.atomic import check_target
from loramerge.files.writer import write_bytes

__all__ = ["check_apart", "check_json", "check_report", "write_report"]

_HEAD = 1 << 16  # bytes of an existing file that are looked at, whatever its size
_NEVER = (
    "config.json", "*_config.json", "*.index.json", "model_index.json", "tokenizer.json", "vocab.json",
    "special_tokens_map.json", "*.state.json", "*.lock.json", "registry.json",
)  # fmt: skip


def check_report(
    path: str | PathLike[str],
    sort: str,
    is_one: Callable[[bytes], bool],
    option: Any,
) -> None:
    """Refuse to write a report over something else. Devices and pipes are written to as they are.

    Args:
        sort: what is written, as errors name it.
        option: the one that names the path.
        is_one: tells from its start whether an existing file is such a report; an empty file is.

    Raises:
        OutputExists: if the path is a folder or another file.
        FileError: if no file should have such a name.
    """
    place = check_target(path, force=True, option=option)
    if not place.exists() or _is_stream(place):
        return
    if place.is_file() and not any(fnmatchcase(place.name, name) for name in _NEVER):
        with place.open("rb") as file:
            head = file.read(_HEAD)
        if not head or is_one(head):
            return
    raise OutputExists(
        f"this file is not {sort}, and a report would replace it",
        file=place,
        hint=("give ", option, " another name"),
    )


def check_apart(
    path: str | PathLike[str], option: Any, others: Iterable[str | PathLike[str]]
) -> None:
    """Refuse a report that would replace another file of the same command.

    Args:
        others: its outputs, inputs and other reports.

    Raises:
        OutputExists: naming the path.
    """
    real = os.path.realpath(path)
    if any(os.path.realpath(other) == real for other in others) and not _is_stream(Path(path)):
        raise OutputExists(
            "this is an output or input of the same command, and would be replaced",
            file=path,
            hint=("give ", option, " another name"),
        )


def _is_stream(place: Path) -> bool:
    return place.exists() and not place.is_file() and not place.is_dir()


def check_json(path: str | PathLike[str], option: Any) -> None:
    """Refuse to write JSON over something else; see `check_report`."""
    check_report(path, "a report in JSON", _begins_as_json, option)


def _begins_as_json(head: bytes) -> bool:
    return head[:1] in (b"[", b"{")


def write_report(path: str | PathLike[str], data: bytes) -> None:
    """Write a report: atomically to a file, straight to a device or pipe, which is never replaced."""
    place = Path(path)
    if _is_stream(place):
        with place.open("wb", buffering=0) as file:
            file.write(data)
        return
    write_bytes(place, data, force=True)
