"""Digests of files: sha256 over the bytes, streamed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from os import PathLike
from typing import Final

from loramerge.files.positioned import PositionedFile
from loramerge.files.tensors import Tensor

__all__ = ["PLACEHOLDER", "sha256_of_file", "tensors_sha256"]

PLACEHOLDER: Final = "0" * 64  # as long as a digest, so that a header can be filled in later
_BLOCK = 1 << 21


def sha256_of_file(path: str | PathLike[str]) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    with PositionedFile(path) as file:
        size, position = file.size(), 0
        while position < size:
            part = view[: min(_BLOCK, size - position)]
            file.read_into(position, part)
            digest.update(part)
            position += len(part)
    return digest.hexdigest()


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
