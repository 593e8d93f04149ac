"""Files: the folders that one may choose from, and uploads."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loramerge.errors import DiskFull, LoramergeError, UsageError, sized
from loramerge.files.atomic import AtomicFile, may_be_in_name
from loramerge.files.reader import TensorFile
from loramerge.files.yaml_values import yaml_values
from loramerge.page.listing import KINDS, listing
from loramerge.page.requests import parts_of
from loramerge.page.server import answer, page_of

__all__ = ["ROUTES", "clean_name"]

_YAML = (".yaml", ".yml")
_LONGEST_YAML = 1 << 20  # bytes
_LONGEST_NAME = 120  # characters
_SPARE = 256 << 20  # bytes of the disk that an upload leaves free
_AT_ONCE = 1 << 20  # bytes that are written together
_NOT_IN_NAMES = '<>:"|?*'  # of files, in some systems


async def _files(request: Request) -> Response:
    query, places = request.query_params, page_of(request).places
    kind = query.get("kind", "adapters")
    if kind not in KINDS:
        raise UsageError(f"{kind!r} is not a kind of file", expected=", ".join(KINDS))
    folder = query.get("folder") or str(places.folder)
    return answer(await asyncio.to_thread(listing, folder, kind, places))


async def _upload(request: Request) -> Response:
    places = page_of(request).places
    path = places.writable(clean_name(request.query_params.get("name", "")))
    stated = request.headers.get("content-length", "")
    _check_space(path.parent, int(stated) if stated.isdecimal() and len(stated) < 20 else 0)
    kept = AtomicFile(path)
    with kept as file:
        buffer, done = bytearray(), 0
        async for part in parts_of(request):
            buffer += part
            if len(buffer) >= _AT_ONCE:
                await asyncio.to_thread(file.write, done, bytes(buffer))
                done += len(buffer)
                buffer.clear()
                _check_size(path, done)
        await asyncio.to_thread(file.write, done, bytes(buffer))
        await asyncio.to_thread(_check_content, path, Path(file.path))
    return answer({"path": str(path), "reference": places.reference(path)})


def clean_name(name: str) -> str:
    """Return the name that an uploaded file gets: the last part of a path, without odd characters.

    Raises:
        UsageError: if it is not that of a file that is taken.
    """
    last = name.replace("\\", "/").rpartition("/")[2]
    kept = "".join(one for one in last if may_be_in_name(one) and one not in _NOT_IN_NAMES)
    stem, dot, suffix = kept.strip().lstrip(".").rpartition(".")
    suffix = (dot + suffix).lower()
    if suffix not in (".safetensors", *_YAML) or not stem.strip():
        raise UsageError(
            "only .safetensors and .yaml files are taken",
            found=ascii(last)[:200],
            hint="other adapters: loramerge convert, on the command line",
        )
    short = stem.strip()[:_LONGEST_NAME]
    while len(os.fsencode(short)) > _LONGEST_NAME:
        short = short[:-1]
    return short + suffix


def _check_space(folder: Path, size: int) -> None:
    """Refuse more than the disk has.

    Raises:
        DiskFull: naming both.
    """
    free = shutil.disk_usage(folder).free - _SPARE
    if size > free or free < 0:
        raise DiskFull(
            "not enough free space for this file", expected=sized(size), found=f"{sized(free)} free"
        )


def _check_size(path: Path, done: int) -> None:
    if path.suffix in _YAML and done > _LONGEST_YAML:
        raise UsageError("this file is too large to be a recipe", found=sized(done))
    _check_space(path.parent, 0)


def _check_content(path: Path, written: Path) -> None:
    """Refuse what the file's name does not say; nothing in it is run.

    Raises:
        LoramergeError: naming the file that was sent.
    """
    if path.suffix in _YAML:
        _check_size(path, written.stat().st_size)
        try:
            yaml_values(written.read_text("utf-8-sig"))
        except ValueError as error:
            raise UsageError("this file is not YAML", file=path.name, found=str(error)) from None
        return
    try:
        TensorFile(written).close()
    except LoramergeError as error:
        raise _renamed(error, path) from None


def _renamed(error: LoramergeError, path: Path) -> LoramergeError:
    """Return an error that names the file that was sent, not the temporary one."""
    error.file = path.name
    return error


ROUTES = [
    Route("/api/files", _files, methods=["GET"]),
    Route("/api/upload", _upload, methods=["POST"]),
]
