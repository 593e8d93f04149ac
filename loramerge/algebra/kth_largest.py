"""Find the k-th largest of more numbers than are held, exactly, in one pass or a few.

The first pass holds the numbers around the place where the sought one is expected, by those that were
seen, and counts those above. It is enough wherever the numbers do not drift from block to block. Else
the number is found by its bits: each pass counts the numbers by 16 bits more, until those that can still
be it are few enough to be held.
"""

from __future__ import annotations

from typing import Any

from loramerge.algebra.arrays import Array

__all__ = ["Search"]

_HELD = 1 << 18  # numbers that may be held, whatever their count
_SHARE = 64  # of more numbers, so many times fewer may be held,
_MOST = 1 << 20  # but never more than this
_SAMPLE = 1 << 14  # of the numbers held, by which bounds are chosen
_DIGIT = 16  # bits by which a pass tells numbers apart


class Search:
    """The search of the k-th largest of numbers that are not negative, which blocks bring pass by pass.

    Such numbers are in the order of their bits, which are compared in their place.

    Args:
        count: k, from 1 to `size`.
        size: the number of numbers.
    """

    def __init__(self, count: int, size: int) -> None:
        self.value = 0.0
        self._count, self._size = count, size
        self._pass: _Window | _Digits = _Window(count, size)

    def take(self, block: Array) -> None:
        """See a block of numbers, in float64 or float32."""
        import numpy as np

        numbers = np.ascontiguousarray(block).reshape(-1)
        self._type = numbers.dtype
        self._pass.take(numbers.view(f"u{numbers.dtype.itemsize}"))

    def is_done(self) -> bool:
        """Use what a pass brought; return whether the number is known."""
        import numpy as np

        found = self._pass.found()
        if found is not None:
            word = np.dtype(f"u{self._type.itemsize}")
            self.value = float(np.array(found, word).view(self._type))
            return True
        if isinstance(self._pass, _Window):
            self._pass = _Digits(self._count, 8 * self._type.itemsize)
        elif self._pass.among <= _MOST:
            self._pass = _Window(self._count, self._size, self._pass.bounds(), _MOST)
        else:
            self._pass = _Digits(self._pass.left, self._pass.shift, self._pass.known)
        return False


class _Window:
    """A pass that holds the numbers around the place where the sought one is expected.

    Attributes:
        above: numbers seen that are larger than those held.
        low, high: bounds of the numbers that are held; None before there are too many.
    """

    def __init__(
        self, count: int, size: int, bounds: tuple[Any, Any] = (None, None), most: int = 0
    ) -> None:
        self.count, self.size = count, size
        self.low, self.high = bounds
        self.most = most or max(_HELD, min(size // _SHARE, _MOST))
        self.seen = self.above = self.length = 0
        self.held: list[Array] = []

    def take(self, bits: Array) -> None:
        """See the bits of a block of numbers."""
        import numpy as np

        self.seen += len(bits)
        if self.low is not None:
            self.above += int(np.count_nonzero(bits > self.high))
            bits = bits[(bits >= self.low) & (bits <= self.high)]
        else:
            bits = bits.copy()
        self.held.append(bits)
        self.length += len(bits)
        if self.length > self.most:
            self._narrow()

    def _narrow(self) -> None:
        """Hold fewer numbers: half of what may be held, around the expected place."""
        import numpy as np

        bits = np.concatenate(self.held)
        sample = np.sort(bits[:: max(1, len(bits) // _SAMPLE)])
        expected = round(self.count * self.seen / self.size) - self.above  # from the largest
        first, last = expected - self.most // 4, expected + self.most // 4
        places = (len(sample) - 1 - n * len(sample) // len(bits) for n in (last, first))
        self.low, self.high = (sample[min(max(place, 0), len(sample) - 1)] for place in places)
        self.above += int(np.count_nonzero(bits > self.high))
        kept = bits[(bits >= self.low) & (bits <= self.high)]
        self.held, self.length = [kept], len(kept)
        self.most = max(self.most, 2 * self.length)  # many equal numbers

    def found(self) -> Any:
        """Return the bits of the number, or None if it is not among those held."""
        import numpy as np

        left = self.count - self.above
        if not 1 <= left <= self.length:
            return None
        bits = np.concatenate(self.held)
        return np.partition(bits, len(bits) - left)[len(bits) - left]


class _Digits:
    """A pass that counts the numbers that begin with known bits, by the next 16 bits.

    Attributes:
        left: how many are sought among those that begin with the known bits.
        known, shift: the bits above `shift` that the number begins with.
        among: how many numbers begin with them.
    """

    def __init__(self, left: int, shift: int, known: int = 0) -> None:
        import numpy as np

        self.left, self.shift, self.known, self.among = left, shift, known, 0
        self.counts = np.zeros(1 << _DIGIT, np.int64)

    def take(self, bits: Array) -> None:
        """See the bits of a block of numbers."""
        import numpy as np

        word = bits.dtype.type
        if self.shift < 8 * bits.dtype.itemsize:
            bits = bits[bits >> word(self.shift) == word(self.known)]
        digits = bits >> word(self.shift - _DIGIT)
        digits &= word((1 << _DIGIT) - 1)
        self.counts += np.bincount(digits.astype(np.int64), minlength=1 << _DIGIT)

    def found(self) -> Any:
        """Return the bits of the number, or None if more of them are to be found."""
        import numpy as np

        above = np.cumsum(self.counts[::-1])  # at or above each digit, the largest digit first
        place = int(np.searchsorted(above, self.left))
        self.left -= int(above[place - 1]) if place else 0
        self.known = self.known << _DIGIT | (len(above) - 1 - place)
        self.shift -= _DIGIT
        self.among = int(self.counts[self.known & (1 << _DIGIT) - 1])
        return self.known if self.shift == 0 else None

    def bounds(self) -> tuple[int, int]:
        """Return the least and the largest number that begins with the known bits."""
        return self.known << self.shift, (self.known + 1 << self.shift) - 1
