"""Reads safetensors files with numpy, for the checks; independent of the package under test."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "u1"}
BLOCK = 1 << 22


_FACTORS = ((".lora_up", ".lora_down"), (".lora_B", ".lora_A"))  # up and down


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
        """Lists the modules of an adapter of kohya or diffusers."""
        marks = tuple(f"{up}.weight" for up, _ in _FACTORS)
        return [name.rpartition(".lora_")[0] for name in self.entries if name.endswith(marks)]

    def factors(self, stem: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns up, with alpha / rank folded in, and down of a module, in float64."""
        up, down = next(
            tuple(self.read(f"{stem}{end}.weight").astype(np.float64) for end in ends)
            for ends in _FACTORS
            if f"{stem}{ends[0]}.weight" in self.entries
        )
        alpha = f"{stem}.alpha"
        scale = float(self.read(alpha)) / len(down) if alpha in self.entries else 1.0
        return scale * up, down
