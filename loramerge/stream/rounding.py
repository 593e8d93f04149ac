"""Rounding from float32 or float64 to the storage type of a base, to nearest or stochastically."""

from __future__ import annotations

import hashlib
from typing import Any

from loramerge.files.dtypes import DTYPES, numpy_dtype
from loramerge.files.halves import round_floats, widen
from loramerge.stream.finite import not_finite

__all__ = ["Rounder", "generator"]


def generator(seed: int, name: str) -> Any:
    """Return the random stream of one tensor: Philox keyed by the seed and the tensor's name."""
    import numpy as np

    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


class Rounder:
    """Rounds blocks of one tensor.

    Args:
        dtype: safetensors name of the storage type.
        name: of the tensor, for errors and for the random stream.
        seed: None rounds to nearest; a number rounds up or down at random, so that the expected
            value is the exact one.
    """

    def __init__(self, dtype: str, name: str, seed: int | None) -> None:
        self.dtype = numpy_dtype(dtype)
        self.name = name
        self._word = DTYPES[dtype].word
        self._random = None if seed is None else generator(seed, name)

    def round(self, exact: Any, out: Any, back: Any = None) -> None:
        """Round `exact` into `out`, an array of the storage type and the same shape.

        Args:
            back: another array that gets the rounded numbers as floats of the type of `exact`.

        Raises:
            NumericsError: if a finite value does not fit.
        """
        import numpy as np

        back = np.empty(exact.shape, exact.dtype) if back is None else back
        if out.dtype.kind in "iu":
            self._whole(exact, out)
            np.copyto(back, out)
            return
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            round_floats(exact, out, back)
            if self._random is not None and out.dtype.itemsize < exact.dtype.itemsize:
                self._stochastic(exact, out)
                widen(out, back)

    def _whole(self, exact: Any, out: Any) -> None:
        """Round to integers; values that do not fit are clipped, which the codec reports."""
        import numpy as np

        if self._random is None:
            rounded = np.rint(exact)
        else:
            rounded = np.floor(exact + self._random.random(exact.shape, dtype=np.float32))
        most = np.iinfo(out.dtype)
        np.copyto(out, np.clip(rounded, most.min, most.max), casting="unsafe")

    def check(
        self, written: Any, weights: Any, asked: Any | None = None, *, allowed: bool = False
    ) -> None:
        """Refuse a block that holds NaN or infinity after rounding.

        Args:
            written: the block, read back as floats.
            weights: the block before.
            asked: what was added to it; None if only the type changes.
            allowed: whether NaN and infinity that it held before may stay.

        Raises:
            NumericsError: saying which of them is why; see `not_finite`.
        """
        import numpy as np

        with np.errstate(over="ignore", invalid="ignore"):
            finite = bool(np.isfinite(written.sum()))
        if finite:
            return
        kept = np.isfinite(written)
        if not (kept | ~np.isfinite(weights) if allowed else kept).all():
            raise not_finite(self.name, self._word, weights, asked)

    def _stochastic(self, exact: Any, out: Any) -> None:
        """Move values to their neighbour on the other side of `exact`, more often the nearer it is."""
        import numpy as np

        assert self._random is not None
        back = out.astype(exact.dtype)
        rest = exact - back
        moved = np.flatnonzero(np.isfinite(rest) & (rest != 0))
        if not len(moved):
            return
        bits_type = np.dtype(f"u{out.dtype.itemsize}")
        flat, nearest, rest = out.reshape(-1), back.reshape(-1)[moved], rest.reshape(-1)[moved]
        bits = flat.view(bits_type)[moved]
        sign_bit = bits_type.type(1 << (8 * out.dtype.itemsize - 1))
        negative = (bits & sign_bit) != 0
        zero = (bits & ~sign_bit) == 0
        outward = (rest < 0) == negative
        step = np.where(outward, 1, -1).astype(np.int64)
        neighbour = (bits.astype(np.int64) + step).astype(bits_type)
        smallest = np.where(rest < 0, sign_bit | bits_type.type(1), bits_type.type(1))
        neighbour = np.where(zero, smallest, neighbour).astype(bits_type)
        other = neighbour.view(out.dtype).astype(exact.dtype)
        chance = np.abs(rest) / np.abs(other - nearest)
        draw = self._random.random(len(moved), dtype=np.float32)
        take = np.isfinite(other) & (draw < chance)
        flat.view(bits_type)[moved[take]] = neighbour[take]
