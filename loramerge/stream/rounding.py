"""Rounding from float32 or float64 to the storage type of a base, to nearest or stochastically."""

from __future__ import annotations

import hashlib
from typing import Any

from loramerge.errors import NumericsError, Setting
from loramerge.files.dtypes import DTYPES, numpy_dtype

__all__ = ["Quantiser", "Rounder", "generator"]


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

    def round(self, exact: Any, out: Any) -> None:
        """Round `exact` into `out`, an array of the storage type and the same shape.

        Raises:
            NumericsError: if a finite value does not fit.
        """
        import numpy as np

        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            np.copyto(out, exact, casting="unsafe")
            if self._random is not None and out.dtype.itemsize < exact.dtype.itemsize:
                self._stochastic(exact, out)

    def check(self, written: Any) -> None:
        """Refuse a block that holds NaN or infinity after rounding.

        Args:
            written: the block, read back as floats.
        """
        import numpy as np

        with np.errstate(over="ignore", invalid="ignore"):
            finite = bool(np.isfinite(written.sum()))
        if not finite and not np.isfinite(written).all():
            raise NumericsError(
                f"NaN or infinity, or values that do not fit {self._word}, after adding",
                module=self.name,
                hint=(
                    "inspect the adapters with ",
                    Setting("deep", True),
                    ", lower their weights, or give ",
                    Setting("dtype", "float32"),
                ),
            )

    def _stochastic(self, exact: Any, out: Any) -> None:
        """Move values to their neighbour on the other side of `exact`, as often as it is near."""
        import numpy as np

        assert self._random is not None
        back = out.astype(exact.dtype)
        rest = exact - back
        moved = np.flatnonzero(rest)
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


class Quantiser:
    """Conversion between weights and the float8 values stored for them: `W = stored · scale`.

    Sums are made of stored values, `stored + ΔW / scale`, so that a row which no delta touches keeps
    its very bits. The scale stays as it is unless values would overflow; then the largest one of the
    tensor (or of the row, where each has its own) is given the type's largest number.

    Args:
        scale: `(rows, 1)` float32, as stored; None for types without one, which leaves all as it is.
        shared: whether all rows have one scale.
    """

    def __init__(self, scale: Any, dtype: str, *, shared: bool) -> None:
        self._stored, self._now = scale, scale
        self._dtype = numpy_dtype(dtype)
        self._shared = shared
        self._largest: Any = None

    @property
    def plain(self) -> bool:
        """True if there is no scale, so that the stored values are the weights."""
        return self._stored is None

    @property
    def changed(self) -> bool:
        """True if the scale has changed."""
        return self._now is not self._stored

    @property
    def scale(self) -> Any:
        """The scale as it will be stored, `(rows, 1)`."""
        return self._now

    def weights(self, stored: Any, start: int, out: Any) -> Any:
        """Return the weights of stored values that begin at row `start`, computed into `out`."""
        import numpy as np

        if self._stored is None:
            return stored
        return np.multiply(stored, self._stored[start : start + len(stored)], out=out)

    def added(self, stored: Any, asked: Any, start: int, out: Any) -> None:
        """Compute the exact values to be rounded and stored into `out`; note how large they are.

        Args:
            stored: as floats.
            asked: the change of the weights.
        """
        import numpy as np

        if self._stored is None:
            np.add(stored, asked, out=out)
            return
        rows = slice(start, start + len(stored))
        np.divide(asked, self._now[rows], out=out)
        if self.changed:
            ratio = self._stored[rows] / self._now[rows]
            out += np.multiply(stored, ratio, where=ratio != 1, out=stored.copy())
        else:
            out += stored
        if self._largest is None:
            self._largest = np.zeros((len(self._stored), 1), out.dtype)
        np.max(np.abs(out), axis=1, keepdims=True, out=self._largest[rows])

    def fits(self, start: int, stop: int) -> bool:
        """Return whether the rows just added fit the type, at once or in a second pass."""
        import numpy as np

        if self._largest is None or self.changed:
            return True
        with np.errstate(over="ignore", invalid="ignore"):
            largest = self._largest[start:stop]
            fits = np.isfinite(largest.astype(self._dtype).astype("float32"))
        return bool((fits | ~np.isfinite(largest)).all())

    def change(self, rounded: Any, weights: Any, start: int) -> None:
        """Turn rounded stored values (as floats, in place) into the change of the weights."""
        if self._stored is not None:
            rounded *= self._now[start : start + len(rounded)]
        rounded -= weights

    def overflowed(self) -> bool:
        """Enlarge the scale if values were too large for the type; return whether it was enlarged."""
        import numpy as np

        largest = self._largest
        self._largest = None
        if largest is None or self.changed:
            return False
        largest = np.where(np.isfinite(largest), largest, 0)  # the second pass finds what is not
        if self._shared:
            largest = np.broadcast_to(largest.max(), largest.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            fits = np.isfinite(largest.astype(self._dtype).astype("float32"))
        if fits.all():
            return False
        import ml_dtypes

        most = float(ml_dtypes.finfo(self._dtype).max)
        grown = self._stored * np.where(fits, 1.0, largest / most).astype("float32")
        self._now = np.where(fits, self._stored, grown).astype("float32")
        return True

    def fit(self, dtype: str) -> Any:
        """Round a changed scale up to the type it is stored in; return what is stored, by row."""
        import numpy as np

        kind = numpy_dtype(dtype)
        stored = self._now.astype(kind)
        if self.changed:
            low = stored.astype("float32") < self._now
            stored = np.where(low, np.nextafter(stored, kind.type(np.inf)), stored).astype(kind)
            self._now = np.where(self._now == self._stored, self._stored, stored.astype("float32"))
        return stored
