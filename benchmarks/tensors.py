"""Reads safetensors files with numpy, for the checks; independent of the package under test."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "u1"}
BLOCK = 1 << 22


class Tensors:
    """An open safetensors file: names in file order, arrays on demand.

    Attributes:
        entries: Name to (dtype as in the header, shape, first byte, last byte + 1).
    """

    def __init__(self, path: Path) -> None:
        """Opens a file and reads its header."""
        self.file = open(path, "rb")  # noqa: SIM115 - closed by __exit__
        size = int.from_bytes(self.file.read(8), "little")
        header = json.loads(self.file.read(size))
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self.entries: dict[str, tuple[str, tuple[int, ...], int, int]] = {
            name: (entry["dtype"], tuple(entry["shape"]), *(8 + size + at for at in offsets))
            for name, entry in header.items()
            for offsets in [entry["data_offsets"]]
        }

    def __enter__(self) -> Tensors:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self.file.close()

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor in its stored dtype."""
        dtype, shape, start, _ = self.entries[name]
        self.file.seek(start)
        count = math.prod(shape)
        return np.fromfile(self.file, DTYPES[dtype], count).reshape(shape)

    def blocks(self, name: str) -> Iterator[bytes]:
        """Yields the bytes of a tensor."""
        _, _, start, end = self.entries[name]
        for at in range(start, end, BLOCK):
            self.file.seek(at)
            yield self.file.read(min(BLOCK, end - at))

    def stems(self) -> list[str]:
        """Lists the modules of a kohya adapter."""
        mark = ".lora_up.weight"
        return [name.removesuffix(mark) for name in self.entries if name.endswith(mark)]

    def factors(self, stem: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns up, with alpha / rank folded in, and down of a kohya module, in float64."""
        down = self.read(f"{stem}.lora_down.weight").astype(np.float64)
        up = self.read(f"{stem}.lora_up.weight").astype(np.float64)
        alpha = f"{stem}.alpha"
        scale = float(self.read(alpha)) / len(down) if alpha in self.entries else 1.0
        return scale * up, down
