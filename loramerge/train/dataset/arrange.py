"""Images in their resolution buckets, with captions; no model is needed for this."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from loramerge.errors import MissingFile, Setting, UsageError
from loramerge.events import Notify, ignore
from loramerge.train.dataset.buckets import Order, Size, bucket_of, bucket_sizes
from loramerge.train.dataset.captions import Captioning
from loramerge.train.dataset.scan import Dataset, Picture, scan
from loramerge.train.spec.seeds import seed_of
from loramerge.train.spec.spec import Data

__all__ = ["Arranged", "arrange", "bucket_step"]

_USUAL_UNIT = 64


@dataclass
class Arranged:
    """A data set in buckets.

    Args:
        buckets: the bucket of each image.
    """

    dataset: Dataset
    buckets: list[Size]
    resolution: int
    captioning: Captioning

    @property
    def pictures(self) -> list[Picture]:
        """All images, those of the subject first."""
        return self.dataset.pictures

    @property
    def asked(self) -> dict[Path, tuple[Picture, Size]]:
        """Path → image and bucket."""
        return {p.path: (p, b) for p, b in zip(self.pictures, self.buckets, strict=True)}

    def without(self, broken: dict[Path, str]) -> Arranged:
        """Return the same data set without unreadable images.

        Raises:
            MissingFile: if no image of the subject is left.
        """
        if not broken:
            return self
        kept = [b for p, b in zip(self.pictures, self.buckets, strict=True) if p.path not in broken]
        found = Arranged(self.dataset.without(broken), kept, self.resolution, self.captioning)
        if not found.dataset.subject:
            raise MissingFile("no image in this folder can be read", file=self.dataset.folder)
        return found

    def divided(self, share: float, seed: int) -> tuple[Arranged, Arranged | None]:
        """Return the images to train on, and those held back for validation.

        Args:
            share: of the subject's images, in `[0, 1)`; at least one is held back, one left.

        Raises:
            UsageError: if a single image is all there is.
        """
        places = [n for n, p in enumerate(self.pictures) if not p.regular]
        if not share:
            return self, None
        if len(places) < 2:
            raise UsageError(
                "one image cannot be divided into training and validation",
                hint=("leave out ", Setting("validation", share)),
            )
        count = min(max(1, round(share * len(places))), len(places) - 1)
        held = set(random.Random(seed_of(seed, "validation", 0)).sample(places, count))
        return self._only(lambda n: n not in held), self._only(held.__contains__)

    def _only(self, wanted: Callable[[int], bool]) -> Arranged:
        kept = [n for n in range(len(self.pictures)) if wanted(n)]
        dataset = replace(self.dataset, pictures=[self.pictures[n] for n in kept])
        buckets = [self.buckets[n] for n in kept]
        return Arranged(dataset, buckets, self.resolution, self.captioning)

    def order(self, size: int, seed: int) -> Order:
        """Return the order of the images in batches of a size."""
        return Order(
            self.buckets,
            [p.repeats for p in self.pictures],
            [p.regular for p in self.pictures],
            size,
            seed,
        )

    def tags(self, most: int = 1000) -> dict[str, int]:
        """Return the most frequent tags of the subject's captions, with their counts."""
        counts: Counter[str] = Counter()
        for picture in self.dataset.subject:
            text = self.captioning.whole(picture)
            counts.update({tag for part in text.split(",") if (tag := part.strip())})
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most])

    def captions(self) -> list[str]:
        """Return every whole caption, and the empty one if captions may be dropped."""
        found = dict.fromkeys(self.captioning.whole(picture) for picture in self.pictures)
        return [*found, *([""] if self.captioning.caption_dropout else [])]


def bucket_step(asked: int | None, unit: int, resolution: int) -> int:
    """Return the step of bucket sides: as given or usual, rounded up to a multiple of the unit."""
    step = asked or (_USUAL_UNIT if resolution >= 4 * _USUAL_UNIT else unit)
    return -(-step // unit) * unit


def arrange(data: Data, unit: int, resolution: int, seed: int, notify: Notify = ignore) -> Arranged:
    """Find the images and put them into buckets.

    Args:
        unit: sides must be multiples of this many pixels.
        resolution: the model's own resolution, in pixels.
    """
    dataset = scan(
        data.images,
        repeats=data.repeats,
        regularisation=data.regularisation,
        without=data.without,
        notify=notify,
    )
    resolution = data.resolution or resolution
    step = bucket_step(data.bucket_step, unit, resolution)
    sizes = bucket_sizes(resolution, step, several=not data.no_buckets)
    captioning = Captioning(
        trigger=data.trigger, shuffle_tags=data.shuffle_tags, keep_tokens=data.keep_tokens,
        tag_dropout=data.tag_dropout, caption_dropout=data.caption_dropout, seed=seed,
    )  # fmt: skip
    buckets = [bucket_of(picture.size, sizes) for picture in dataset.pictures]
    return Arranged(dataset, buckets, resolution, captioning)
