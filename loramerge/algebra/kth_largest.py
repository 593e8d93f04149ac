"""Find the k-th largest of more numbers than are held, exactly, in one pass or a few.

The first pass holds the numbers around the place where the sought one is expected, by those that were
seen or drawn before, and counts those above. It is enough wherever the numbers do not drift from block
to block, or some from all over were drawn. Else the number is found by its bits: each pass counts the
numbers by 16 bits more, until those that can still be it are few enough to be held.
"""

from __future__ import annotations

from typing import Any

from loramerge.algebra.arrays import Array

__all__ = ["Search"]

_HELD = 1 << 18  # numbers that may be held, whatever their count
_SHARE = 64  # of more numbers, so many times fewer may be held,
_MOST = 1 << 20  # but never more than this
_SAMPLE = 1 << 14  # of the numbers held or drawn, by which bounds are chosen
_DIGIT = 16  # bits by which a pass tells numbers apart
_MARGIN = 0.03  # share of the numbers held on either side of the place that a draw gives


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

    def expect(self, drawn: Array) -> None:
        """Choose what to hold by numbers from all over, of the type of the blocks, before the first."""
        if self._size > _HELD and isinstance(self._pass, _Window):
            self._pass.choose(_bits(drawn))

    def take(self, block: Array) -> None:
        """See a block of numbers, in float64 or float32."""
        bits = _bits(block)
        self._type = block.dtype
        self._pass.take(bits)

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


def _bits(numbers: Array) -> Array:
    """Return the bits of numbers in one axis."""
    import numpy as np

    flat = np.ascontiguousarray(numbers).reshape(-1)
    return flat.view(f"u{flat.dtype.itemsize}")


class _Window:
    """A pass that holds the numbers around the place where the sought one is expected.

    Attributes:
        above: numbers seen that are larger than those held.
        low, high: bounds of the numbers that are held; None before there are too many.
        held: bits of numbers, in blocks, of `length` together.
        distinct, counts: bits of further numbers that are held, and how many have them.
    """

    def __init__(
        self, count: int, size: int, bounds: tuple[Any, Any] = (None, None), most: int = 0
    ) -> None:
        import numpy as np

        self.count, self.size = count, size
        self.low, self.high = bounds
        self.most = most or max(_HELD, min(size // _SHARE, _MOST))
        self.seen = self.above = self.length = 0
        self.held: list[Array] = []
        self.distinct, self.counts = np.empty(0, np.uint64), np.empty(0, np.int64)

    def choose(self, bits: Array) -> None:
        """Choose the bounds by the bits of numbers that were drawn, none where too few lie beyond."""
        import numpy as np

        drawn = np.sort(bits[:: max(1, len(bits) // _SAMPLE)])
        size = len(drawn)
        first, last = (int(size * (self.count / self.size + one)) for one in (-_MARGIN, _MARGIN))
        limits = np.iinfo(bits.dtype)
        self.low = drawn[size - 1 - last] if last < size else bits.dtype.type(limits.min)
        self.high = drawn[size - 1 - first] if first > 0 else bits.dtype.type(limits.max)
        # holding fewer goes by the order of what was seen, so it comes later
        self.most = max(self.most, min(round(3 * _MARGIN * self.size), 2 * _MOST))

    def take(self, bits: Array) -> None:
        """See the bits of a block of numbers."""
        import numpy as np

        self.seen += len(bits)
        if self.low is None:
            bits = bits.copy()
        elif self.low == self.high:
            self.above += int(np.count_nonzero(bits > self.high))
            self._count(np.array([self.low]), np.array([np.count_nonzero(bits == self.low)]))
            return
        else:
            larger = bits > self.high
            self.above += int(np.count_nonzero(larger))
            within = np.not_equal(bits >= self.low, larger, out=larger)
            bits = bits[np.flatnonzero(within)]  # places are faster than truths if few are held
        self.held.append(bits)
        self.length += len(bits)
        if self.length > self.most:
            self._narrow()

    def _narrow(self) -> None:
        """Hold fewer numbers: half of what may be held around the expected place, equal ones once."""
        import numpy as np

        bits = np.concatenate(self.held)
        if not len(self.distinct):
            sample = np.sort(bits[:: max(1, len(bits) // _SAMPLE)])
            expected = round(self.count * self.seen / self.size) - self.above  # from the largest
            first, last = expected - self.most // 4, expected + self.most // 4
            places = (len(sample) - 1 - n * len(sample) // len(bits) for n in (last, first))
            self.low, self.high = (sample[min(max(place, 0), len(sample) - 1)] for place in places)
            self.above += int(np.count_nonzero(bits > self.high))
            bits = bits[(bits >= self.low) & (bits <= self.high)]
        if 4 * len(bits) > 3 * self.most or len(self.distinct):
            self._count(*np.unique(bits, return_counts=True))
            bits = bits[:0]
        self.held, self.length = [bits], len(bits)
        self.most = max(self.most, 2 * len(self.distinct))

    def _count(self, bits: Array, counts: Array) -> None:
        """Hold further numbers by their distinct bits."""
        import numpy as np

        counts = np.concatenate([self.counts, counts])
        self.distinct, place = np.unique(
            np.concatenate([self.distinct, bits.astype(np.uint64)]), return_inverse=True
        )
        self.counts = np.bincount(place, counts, len(self.distinct)).astype(np.int64)

    def found(self) -> Any:
        """Return the bits of the number, or None if it is not among those held."""
        import numpy as np

        left = self.count - self.above
        if not 1 <= left <= self.length + int(self.counts.sum()):
            return None
        bits = np.concatenate(self.held) if self.held else np.empty(0, np.uint64)
        if not len(self.distinct):
            return np.partition(bits, len(bits) - left)[len(bits) - left]
        self._count(*np.unique(bits, return_counts=True))
        at_or_above = np.cumsum(self.counts[::-1])
        return self.distinct[::-1][np.searchsorted(at_or_above, left)]


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
