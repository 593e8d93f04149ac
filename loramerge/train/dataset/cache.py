"""A cache of tensors on disk, keyed by everything they were computed from.

So an entry is never out of date, and several runs may share a cache. Entries that a killed run had not
written yet are computed again, to the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from loramerge.errors import LoramergeError
from loramerge.files.reader import TensorFile
from loramerge.files.tensors import ArrayTensor, Tensor
from loramerge.files.writer import write_tensors

__all__ = ["TensorCache"]

_SHARD_BYTES = 64 << 20
_SHARD_ENTRIES = 1024


class TensorCache:
    """A folder of safetensors shards; each entry is a key with named float32 tensors.

    Memory holds the keys and the entries not yet written, at most one shard.

    Args:
        folder: created with the first shard.
        name: prefix of the shards' names, so that one folder can hold several caches.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._places: dict[str, tuple[TensorFile, tuple[str, ...]]] = {}
        self._waiting: dict[str, dict[str, Any]] = {}
        self._bytes = 0
        self._shards: set[Path] = set()
        self.refresh()

    def refresh(self) -> None:
        """Find shards written since the last look, by this process or another."""
        for path in sorted(self.folder.glob(f"{self.name}-*.safetensors")):
            if path not in self._shards:
                self._read(path)

    def _read(self, path: Path) -> None:
        try:
            file = TensorFile(path)
        except LoramergeError:
            return  # lost entries are computed again
        self._shards.add(path)
        found: dict[str, list[str]] = {}
        for tensor in file.tensors:
            key, _, part = tensor.rpartition(".")
            found.setdefault(key, []).append(part)
        for key, parts in found.items():
            self._places[key] = (file, tuple(parts))
        file.close()  # opened again for reading, so that few files are open at a time

    def __contains__(self, key: str) -> bool:
        return key in self._places or key in self._waiting

    def __len__(self) -> int:
        return len(self._places | self._waiting)

    def put(self, key: str, tensors: Mapping[str, Any]) -> None:
        """Keep the tensors of a key."""
        values = {
            part: value.detach().cpu().float().contiguous() for part, value in tensors.items()
        }
        self._waiting[key] = values
        self._bytes += sum(value.nbytes for value in values.values())
        if self._bytes >= _SHARD_BYTES or len(self._waiting) >= _SHARD_ENTRIES:
            self.flush()

    def flush(self) -> None:
        """Write the entries that are only in memory."""
        if not self._waiting:
            return
        name = hashlib.sha256("".join(sorted(self._waiting)).encode()).hexdigest()[:16]
        path = self.folder / f"{self.name}-{name}.safetensors"
        tensors: list[tuple[str, Tensor]] = [
            (f"{key}.{part}", ArrayTensor(value.numpy()))
            for key, values in sorted(self._waiting.items())
            for part, value in sorted(values.items())
        ]
        if path.is_file():
            self._read(path)  # another run was faster
        if path not in self._shards:
            write_tensors(path, tensors, {}, force=True)
            self._read(path)
        self._waiting.clear()
        self._bytes = 0

    def get(self, key: str) -> dict[str, Any]:
        """Return the tensors of a key.

        Raises:
            KeyError: if the key is not in the cache.
        """
        if key in self._waiting:
            return dict(self._waiting[key])
        file, parts = self._places[key]
        found = {p: torch.from_numpy(file.tensors[f"{key}.{p}"].numpy().copy()) for p in parts}
        file.close()
        return found
