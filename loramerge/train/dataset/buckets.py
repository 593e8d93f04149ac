"""Resolution buckets, and the order of the images in an epoch.

All images of a batch have one size. Every image goes to the bucket whose aspect ratio is nearest to its
own, and is scaled to cover it. The order depends only on the seed and the step's number, so a resumed
run continues where it stopped.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from loramerge.errors import UsageError
from loramerge.train.spec.seeds import seed_of

__all__ = ["Order", "Size", "bucket_of", "bucket_sizes"]

Size = tuple[int, int]  # width, height

_LONGEST = 2.0  # sides of buckets are from half to twice the resolution


def bucket_sizes(resolution: int, unit: int, *, several: bool = True) -> list[Size]:
    """Return the sizes of the buckets; none has more pixels than a square of the resolution.

    Args:
        unit: sides are multiples of it, e.g. 64.
        several: False for the square alone.

    Raises:
        UsageError: if the resolution is smaller than the unit.
    """
    side = resolution // unit * unit
    if side < unit:
        raise UsageError(
            f"the resolution is below {unit} pixels, the smallest that this model can generate",
            found=resolution,
        )
    found = {(side, side)}
    if several:
        longest = int(_LONGEST * resolution) // unit * unit
        least = max(unit, math.ceil(resolution / _LONGEST / unit) * unit)
        for width in range(least, longest + 1, unit):
            height = min(longest, side * side // width // unit * unit)
            if height >= least:
                found |= {(width, height), (height, width)}
    return sorted(found, key=lambda size: (size[0] / size[1], size))


def bucket_of(size: Size, buckets: Sequence[Size]) -> Size:
    """Return the bucket of the nearest aspect ratio; among equals, the one with the most pixels."""
    ratio = math.log(size[0] / size[1])

    def distance(bucket: Size) -> tuple[float, int]:
        return round(abs(math.log(bucket[0] / bucket[1]) - ratio), 9), -bucket[0] * bucket[1]

    return min(buckets, key=distance)


@dataclass
class Order:
    """The images of each batch.

    An epoch shows every image of the subject `repeats` times, and the same number of regularisation
    images. If there are more of these, the next epoch shows the next ones. A bucket's last batch may
    be smaller.

    Args:
        buckets: the bucket of each image.
        repeats: the repeats of each image.
        regular: for each image, True if it is a regularisation image.
        size: images in a batch.
    """

    buckets: Sequence[Size]
    repeats: Sequence[int]
    regular: Sequence[bool]
    size: int
    seed: int
    _starts: list[int] = field(default_factory=lambda: [0])  # number of each epoch's first batch
    _epoch: tuple[int, list[list[int]]] | None = None

    @property
    def shown(self) -> int:
        """Number of images that an epoch shows."""
        subject = sum(n for n, reg in zip(self.repeats, self.regular, strict=True) if not reg)
        return subject * 2 if any(self.regular) else subject

    def batch(self, number: int) -> list[int]:
        """Return the images of a batch, as indices into the data set."""
        while self._starts[-1] <= number:
            self._starts.append(self._starts[-1] + len(self.batches(len(self._starts) - 1)))
        epoch = bisect_right(self._starts, number) - 1
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self.batches(epoch))
        return self._epoch[1][number - self._starts[epoch]]

    def epoch_of(self, number: int) -> int:
        """Return the epoch that a batch belongs to, counted from 0."""
        self.batch(number)
        return bisect_right(self._starts, number) - 1

    def batches(self, epoch: int) -> list[list[int]]:
        """Return the batches of an epoch, in its order."""
        draw = random.Random(seed_of(self.seed, "order", epoch))
        by_bucket: dict[Size, list[int]] = {}
        for place in self._entries(epoch):
            by_bucket.setdefault(self.buckets[place], []).append(place)
        found: list[list[int]] = []
        for bucket in sorted(by_bucket):
            places = by_bucket[bucket]
            draw.shuffle(places)
            found += [places[i : i + self.size] for i in range(0, len(places), self.size)]
        draw.shuffle(found)
        return found

    def batches_of(self, epochs: float) -> int:
        """Return the number of batches of so many epochs."""
        whole = int(epochs)
        count = sum(len(self.batches(epoch)) for epoch in range(whole))
        return count + math.ceil((epochs - whole) * len(self.batches(whole)))

    def _entries(self, epoch: int) -> list[int]:
        subject = [
            place
            for place, (count, regular) in enumerate(zip(self.repeats, self.regular, strict=True))
            if not regular
            for _ in range(count)
        ]
        others = [place for place, regular in enumerate(self.regular) if regular]
        if not others:
            return subject
        first = epoch * len(subject)
        return subject + [others[(first + n) % len(others)] for n in range(len(subject))]
