"""From images and captions to batches: a pure function of the batch's number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from loramerge.train.dataset.buckets import Order, Size
from loramerge.train.dataset.captions import Captioning
from loramerge.train.dataset.scan import Picture
from loramerge.train.models.latents import Latents
from loramerge.train.models.texts import Texts
from loramerge.train.run.batches import Batch

__all__ = ["Examples", "time_ids"]


class Examples:
    """The batches of a run.

    Args:
        pictures, buckets: in the order of `order`.
        texts: None leaves encoding to the loop, where the text encoders are trained.
        weight: of the loss on regularisation images.
        sizes: whether SDXL is told sizes and cuts.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        buckets: Sequence[Size],
        order: Order,
        captioning: Captioning,
        latents: Latents,
        texts: Texts | None,
        *,
        weight: float = 1.0,
        sizes: bool = False,
    ) -> None:
        self._pictures, self._buckets, self._order = pictures, buckets, order
        self._captioning, self._latents, self._texts = captioning, latents, texts
        self._weight, self._sizes = weight, sizes

    def captions(self, number: int) -> list[str]:
        """Return the captions of a batch."""
        first = number * self._order.size
        return [
            self._captioning.drawn(self._pictures[place], first + row)
            for row, place in enumerate(self._order.batch(number))
        ]

    @torch.no_grad()
    def __call__(self, number: int) -> Batch:
        """Return a batch."""
        return self._batch(self._order.batch(number), tuple(self.captions(number)))

    @torch.no_grad()
    def one(self, place: int) -> Batch:
        """Return an image with its whole caption as a batch."""
        return self._batch([place], (self._captioning.whole(self._pictures[place]),))

    def _batch(self, places: Sequence[int], captions: tuple[str, ...]) -> Batch:
        pictures = [self._pictures[place] for place in places]
        buckets = [self._buckets[place] for place in places]
        latents = torch.stack([self._latents(*one) for one in zip(pictures, buckets, strict=True)])
        states = None if self._texts is None else self._texts(captions)
        return Batch(
            latents,
            None if states is None else states.text,
            None if states is None else states.pooled,
            torch.stack([time_ids(p.size, b) for p, b in zip(pictures, buckets, strict=True)])
            if self._sizes
            else None,
            captions=captions,
            weights=self._weights(pictures),
        )

    def _weights(self, pictures: Sequence[Picture]) -> Any:
        if self._weight == 1.0 or not any(picture.regular for picture in pictures):
            return None
        return torch.tensor([self._weight if p.regular else 1.0 for p in pictures])


def time_ids(size: Size, bucket: Size) -> Any:
    """Return SDXL's conditions: height and width, top and left of the cut, height and width drawn.

    Source: Podell et al., SDXL (arXiv:2307.01952), section 2.2.
    """
    factor = max(bucket[0] / size[0], bucket[1] / size[1])
    left, top = ((max(b, round(s * factor)) - b) // 2 for b, s in zip(bucket, size, strict=True))
    return torch.tensor([size[1], size[0], top, left, bucket[1], bucket[0]], dtype=torch.float32)
