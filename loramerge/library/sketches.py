"""The sketches of all contents of the index: one file of float32 rows, in the order of their numbers.

A row is a sketch of length 1, so the product with another is the cosine of the two. Rows are written at
their places before the database names them; a process that is killed in between leaves a row that
nobody reads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from loramerge.algebra.arrays import Array
from loramerge.algebra.workers import ordered
from loramerge.errors import FileError

__all__ = ["WIDTH", "Sketches"]

WIDTH = 4096
_ROW = 4 * WIDTH  # bytes
_MOST = 10_000_000  # rows; 164 GB
_BLOCK = 2048  # rows that are multiplied at once


class Sketches:
    """The matrix of sketches beside an index.

    Args:
        folder: that of the index.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "sketches.f32"

    @property
    def count(self) -> int:
        """Rows that the file has room for; those of contents without a sketch are anything."""
        try:
            return self._path.stat().st_size // _ROW
        except FileNotFoundError:
            return 0

    def write(self, rows: Mapping[int, Array]) -> None:
        """Write rows at their places, so that they are on the disk when this returns.

        Raises:
            FileError: if a number is not one that the index gives, for the file would fill the disk.
        """
        if strange := [number for number in rows if not 0 <= number < _MOST]:
            raise FileError(
                "the index of the library is damaged: its contents have impossible numbers",
                file=self._path.parent,
                found=str(strange[0]),
                hint="move the folder away: library scan makes a new one",
            )
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(descriptor, "r+b") as file:
            for number, row in sorted(rows.items()):
                file.seek(number * _ROW)
                file.write(row.astype("<f4").tobytes())
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> Array:
        """Return all rows, `(count, 4096)`, mapped from the file."""
        import numpy as np

        if not self.count:
            return np.zeros((0, WIDTH), "<f4")
        return np.memmap(self._path, "<f4", "r", shape=(self.count, WIDTH))

    def cosines(self, row: Array, *, threads: int | None = None) -> Array:
        """Return the products of all rows with one, `(count,)`."""
        import numpy as np

        every = self.rows()
        blocks = [every[start : start + _BLOCK] for start in range(0, len(every), _BLOCK)]
        wanted = row.astype("<f4")
        found = list(ordered(lambda block: _products(block, wanted), blocks, threads=threads))
        return np.concatenate(found) if found else np.zeros(0, "<f4")

    def near_pairs(self, numbers: Array, least: float) -> Iterator[tuple[int, int, float]]:
        """Yield the pairs of rows whose cosine is `least` or more in size.

        Args:
            numbers: of the rows to compare.
        """
        import numpy as np

        every = self.rows()
        for start in range(0, len(numbers), _BLOCK):
            first = np.asarray(every[numbers[start : start + _BLOCK]])
            for other in range(start, len(numbers), _BLOCK):
                second = first if other == start else every[numbers[other : other + _BLOCK]]
                products = _products(first, second.T)
                if other == start:
                    products = np.triu(products, 1)
                for a, b in zip(*np.nonzero(np.abs(products) >= least), strict=True):
                    yield int(numbers[start + a]), int(numbers[other + b]), float(products[a, b])


def _products(rows: Array, others: Array) -> Array:
    """Return the cosines of rows of length 1; 0 for rows that a damaged file holds instead."""
    import numpy as np

    with np.errstate(all="ignore"):
        found = rows @ others
    return np.where(np.abs(found) < 1.01, found, np.float32(0.0))
