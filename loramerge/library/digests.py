"""Digests of files, remembered by path, size, time and inode so that a base is hashed once."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from loramerge.errors import FileError, LoramergeError
from loramerge.files.digest import sha256_of_file
from loramerge.files.json_values import read_values
from loramerge.files.writer import write_bytes
from loramerge.library.registry import home

__all__ = ["digest_of", "digest_of_files"]

_FILE = "digests.json"
_MOST = 10_000  # entries kept
_WORTH = 4 << 20  # bytes below which hashing again is as fast as looking it up

_this_process: dict[str, tuple[list[int], str]] = {}


def _identity(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _read() -> dict[str, object]:
    try:
        content = read_values(home() / _FILE)
    except (OSError, ValueError, LoramergeError):
        return {}  # a cache may be lost at any time
    return content if isinstance(content, dict) else {}


def digest_of(path: Path) -> str:
    """Return the sha256 of a file, from the cache if the file has not changed."""
    key = os.path.realpath(path)
    identity = _identity(path)
    if _this_process.get(key, ([], ""))[0] == identity:
        return _this_process[key][1]
    small = identity[0] < _WORTH
    known = None if small else _read().get(key)
    if isinstance(known, list) and known[:3] == identity and len(known) == 4:
        _this_process[key] = (identity, str(known[3]))
        return str(known[3])
    digest = sha256_of_file(path)
    if _identity(path) != identity:
        raise FileError("the file changed while it was read", file=path, hint="run again")
    _this_process[key] = (identity, digest)
    if not small:
        entries = _read()
        entries.pop(key, None)
        entries[key] = [*identity, digest]
        kept = dict(list(entries.items())[-_MOST:])
        with suppress(LoramergeError, OSError):  # a read-only home costs time, not correctness
            write_bytes(home() / _FILE, json.dumps(kept).encode("utf-8"), force=True)
    return digest


def digest_of_files(root: Path, files: Sequence[Path]) -> str:
    """Return the digest of a folder: over sorted (relative path, digest) of its files."""
    import hashlib

    total = hashlib.sha256()
    for path in sorted(files):
        relative = path.relative_to(root).as_posix()
        total.update(f"{relative}\0{digest_of(path)}\n".encode())
    return total.hexdigest()
