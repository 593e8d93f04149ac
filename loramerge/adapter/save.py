"""Adapter → file in a dialect."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from loramerge.adapter.adapter import Adapter
from loramerge.adapter.encode import choose_dialect, encode
from loramerge.adapter.encoded import Encoded
from loramerge.adapter.formats import container_of
from loramerge.adapter.formats.container import Check
from loramerge.errors import NumericsError

__all__ = ["save", "write_encoded"]


def save(
    adapter: Adapter,
    path: str | PathLike[str],
    *,
    to: str | None = None,
    dtype: str | None = None,
    force: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write an adapter atomically.

    Args:
        path: file, or folder for the dialect `peft`; `.pt` writes lora_diffusion's lists.
        to: dialect or program; None keeps the adapter's own.
        dtype: safetensors name of the float type, None for the adapter's.
        metadata: entries to add to the header.

    Returns:
        Bytes written.

    Raises:
        OutputExists: unless `force`.
        NotExpressible, NumericsError: see `encode`.
    """
    target = choose_dialect(to, [adapter], path)
    encoded = encode(adapter, target, dtype)
    encoded.metadata |= metadata or {}
    return write_encoded(encoded, path, force=force)


def write_encoded(
    encoded: Encoded,
    path: str | PathLike[str],
    *,
    force: bool = False,
    check: Check | None = None,
) -> int:
    """Write an encoded adapter; see `save`.

    Args:
        check: checks the file or folder before it gets its name; if it raises, nothing is left.
    """
    place = Path(path)
    try:
        return container_of(encoded.dialect).write(encoded, place, force, check)
    except NumericsError as error:
        error.file = error.file or str(place)
        raise
