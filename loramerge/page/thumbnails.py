"""Small pictures of previews: decoded, scaled and encoded anew, and kept for the next time.

A preview comes from anywhere, so its bytes never reach the browser.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from loramerge.errors import CorruptFile, LoramergeError
from loramerge.files.writer import write_bytes
from loramerge.library.registry import cache

__all__ = ["KINDS", "thumbnail"]

SIDE = 320  # pixels of the longer side, at most
KINDS = {".webp": "image/webp", ".jpg": "image/jpeg"}
_FORMATS = ("PNG", "JPEG", "WEBP")  # the only ones that are decoded
_PIXELS = 40_000_000  # of a picture that is decoded
_BYTES = 64 << 20  # of a file that is read
_KEPT = 128 << 20  # bytes of all that are kept
_TOGETHER = threading.Semaphore(2)  # pictures in memory at a time


def thumbnail(path: Path) -> tuple[bytes, str]:
    """Return a picture scaled down, and its type.

    Raises:
        CorruptFile: if it is not a picture that can be decoded, or too large.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise CorruptFile(f"it cannot be read: {error.strerror}", file=path) from None
    text = f"{os.path.realpath(path)}\0{status.st_size}\0{status.st_mtime_ns}\0{SIDE}"
    stem = hashlib.sha256(os.fsencode(text)).hexdigest()[:40]
    folder = cache() / "page"
    for ending, kind in KINDS.items():
        with suppress(OSError):
            return (folder / f"{stem}{ending}").read_bytes(), kind
    with _TOGETHER:
        data, ending = _scaled(path, status.st_size)
    with suppress(LoramergeError, OSError):  # a disk that is full costs time, not the picture
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / f"{stem}{ending}", data, force=True)
        if stem[0] == "0":  # looking through thousands takes longer than making one
            _tidy(folder)
    return data, KINDS[ending]


def _scaled(path: Path, size: int) -> tuple[bytes, str]:
    from PIL import Image, features

    if size > _BYTES:
        raise CorruptFile(f"the picture is larger than {_BYTES >> 20} MB", file=path)
    try:
        with Image.open(path, formats=_FORMATS) as found:
            if found.width * found.height > _PIXELS:
                raise CorruptFile(
                    "the picture has too many pixels",
                    file=path,
                    expected=f"{_PIXELS // 1_000_000} million at most",
                    found=f"{found.width} × {found.height}",
                )
            small = _small(found)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise CorruptFile("the picture has too many pixels", file=path) from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise CorruptFile(f"it is not a picture that can be shown: {error}", file=path) from None
    data = io.BytesIO()
    if features.check("webp"):
        small.save(data, "WEBP", quality=80, method=4)
        return data.getvalue(), ".webp"
    small.convert("RGB").save(data, "JPEG", quality=85)
    return data.getvalue(), ".jpg"


def _small(picture: Any) -> Any:
    """Return the picture with its longer side at most `SIDE` pixels, without anything beside pixels."""
    from PIL import Image, ImageOps

    picture.draft("RGB", (2 * SIDE, 2 * SIDE))  # a JPEG is decoded smaller
    picture.thumbnail((SIDE, SIDE), reducing_gap=2.0)
    upright = ImageOps.exif_transpose(picture)
    transparent = "A" in upright.getbands() or "transparency" in upright.info
    plain = upright.convert("RGBA" if transparent else "RGB")
    return Image.frombytes(plain.mode, plain.size, plain.tobytes())


def _tidy(folder: Path) -> None:
    """Delete the oldest thumbnails while all of them take too much."""
    found = _by_age(folder)
    total = sum(size for _, size, _ in found)
    for _, size, path in found:
        if total <= _KEPT:
            return
        path.unlink(missing_ok=True)
        total -= size


def _by_age(folder: Path) -> Sequence[tuple[int, int, Path]]:
    found = []
    with os.scandir(folder) as files:
        for one in files:
            with suppress(OSError):
                status = one.stat()
                found.append((status.st_mtime_ns, status.st_size, Path(one.path)))
    return sorted(found)
