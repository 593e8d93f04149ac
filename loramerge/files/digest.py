"""Digests of files: sha256 over the bytes, streamed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Final

from loramerge.files.positioned import PositionedFile
from loramerge.files.tensors import Tensor

__all__ = ["PLACEHOLDER", "sha256_of_file", "sha256_of_file_and_data", "tensors_sha256"]

PLACEHOLDER: Final = "0" * 64  # as long as a digest, so that a header can be filled in later
_BLOCK = 1 << 21


def sha256_of_file(path: str | PathLike[str]) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with PositionedFile(path) as file:
        for part in _parts(file):
            digest.update(part)
    return digest.hexdigest()


def sha256_of_file_and_data(path: str | PathLike[str]) -> tuple[str, str | None]:
    """Return the sha256 of a file and, of a safetensors file, that of its bytes after the header.

    Sites and programs show the first 10 digits of the first as AutoV2, and the first 12 of the second
    as AutoV3. A change of metadata alone keeps the second.
    """
    whole, data = hashlib.sha256(), hashlib.sha256()
    with PositionedFile(path) as file:
        size, position, start = file.size(), 0, 0
        for part in _parts(file):
            if position == 0:
                start = 8 + int.from_bytes(part[:8], "little")
            whole.update(part)
            data.update(part[max(0, start - position) :])
            position += len(part)
    return whole.hexdigest(), data.hexdigest() if 8 < start < size else None


def _parts(file: PositionedFile) -> Iterator[memoryview]:
    """Yield the bytes of a file; each part is overwritten by the next."""
    view = memoryview(bytearray(_BLOCK))
    size, position = file.size(), 0
    while position < size:
        part = view[: min(_BLOCK, size - position)]
        file.read_into(position, part)
        yield part
        position += len(part)


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of tensors alone: over (name, dtype, shape, bytes), sorted by name.

    It does not depend on the order in the file, nor on metadata.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.raw())
    return digest.hexdigest()
