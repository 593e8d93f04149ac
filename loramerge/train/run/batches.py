"""Batches as functions of their number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from loramerge.train.spec.seeds import generator_of

__all__ = ["Batch", "Batches", "shuffled"]


@dataclass(frozen=True)
class Batch:
    """Examples as the model reads them.

    Args:
        latents: `(n, c, h, w)`, scaled as the VAE's configuration says.
        text: states of the text encoder, `(n, tokens, width)`.
            None where the text encoders are trained, which then read `captions`.
        pooled, time_ids: SDXL's pooled text `(n, width)` and sizes `(n, 6)`.
        weights: of each example's loss, `(n,)`; None: all weigh the same.
    """

    latents: Any
    text: Any = None
    pooled: Any = None
    time_ids: Any = None
    captions: tuple[str, ...] = ()
    weights: Any = None

    def __len__(self) -> int:
        return int(self.latents.shape[0])

    def mapped(self, function: Callable[[Any], Any]) -> Batch:
        """Return the batch with a function applied to every tensor it has."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return replace(
            self, **{n: function(v) for n, v in fields.items() if isinstance(v, torch.Tensor)}
        )


Batches = Callable[[int], Batch]  # number of the step → its batch, always the same


def shuffled(examples: Batch, size: int, seed: int = 0) -> Batches:
    """Return the batches of examples in memory, each epoch in an order of its own.

    A batch at the end of an epoch goes on with the next, so all examples count alike.
    """
    count = len(examples)
    orders: dict[int, Any] = {}

    def batch(number: int) -> Batch:
        places = range(number * size, (number + 1) * size)
        wanted = {place // count for place in places}
        for epoch in orders.keys() - wanted:
            del orders[epoch]
        for epoch in wanted - orders.keys():
            orders[epoch] = torch.randperm(count, generator=generator_of(seed, "order", epoch))
        rows = torch.stack([orders[place // count][place % count] for place in places])
        return examples.mapped(lambda values: values[rows.to(values.device)])

    return batch
