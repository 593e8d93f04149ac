"""Open files of tensors. Only the header is read until a tensor is asked for."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path

from loramerge.errors import FileError
from loramerge.files.header import Header, TensorInfo, build_header, parse_header
from loramerge.files.positioned import PositionedFile
from loramerge.files.tensors import StoredTensor

__all__ = ["TensorFile", "release"]

_open_files: weakref.WeakSet[TensorFile] = weakref.WeakSet()


class TensorFile:
    """A safetensors file: `tensors` maps names to lazy handles in the order of their data.

    The descriptor can be closed at any time (`close`); the next read opens the file again and
    refuses if it has been replaced or edited meanwhile. What is read of a file that is edited while it
    is open is refused, too. `alignment` is a number of which the size of the file is a multiple.

    Raises:
        CorruptFile, MissingFile: if the file is not a valid safetensors file.
    """

    alignment: int = 1

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = os.fspath(path)
        if os.path.isdir(self.path):
            raise FileError("expected a file, found a folder", file=self.path)
        self._handle: PositionedFile | None = PositionedFile(self.path)
        self._identity = self._handle.pin()
        try:
            self.header: Header = self._parse(self._handle)
        except BaseException:
            self.close()
            raise
        self.tensors: dict[str, StoredTensor] = {
            name: StoredTensor(self, info) for name, info in self.header.tensors.items()
        }
        _open_files.add(self)

    def _parse(self, handle: PositionedFile) -> Header:
        size = handle.size()
        return parse_header(
            handle.read(0, min(8, size)), lambda count: handle.read(8, count), size, handle.path
        )

    def rebuilt(
        self, entries: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
    ) -> tuple[bytes, dict[str, TensorInfo]]:
        """Build the head of a file of this format; see `build_header`."""
        return build_header(entries, metadata)

    @property
    def metadata(self) -> dict[str, str]:
        """The strings in the header."""
        return self.header.metadata

    @property
    def size(self) -> int:
        """Size of the file in bytes when it was opened."""
        return self._identity[0]

    @property
    def identity(self) -> tuple[int, int, int]:
        """(size, mtime_ns, inode) when the file was opened."""
        return self._identity

    def handle(self) -> PositionedFile:
        """Return the open file, opening it again if it was closed."""
        if self._handle is None:
            handle = PositionedFile(self.path)
            if handle.pin() != self._identity:
                handle.close()
                raise FileError(
                    "the file changed after its header was read", file=self.path, hint="run again"
                )
            self._handle = handle
        return self._handle

    def close(self) -> None:
        """Close the descriptor."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None:
            handle.close()


def release(path: str | PathLike[str]) -> None:
    """Close every open file at `path`, so that it can be replaced (Windows forbids it otherwise)."""
    try:
        number = Path(path).stat().st_ino
    except OSError:
        return  # nothing is there
    for file in list(_open_files):
        if file.identity[2] == number:  # on another disk, too: it is opened again when it is read
            file.close()
