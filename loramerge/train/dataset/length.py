"""The length of a run in epochs, and intervals in epochs, as numbers of steps."""

from __future__ import annotations

import math
from dataclasses import replace

from loramerge.errors import UsageError
from loramerge.train.dataset.buckets import Order
from loramerge.train.spec.spec import Spec

__all__ = ["in_steps", "interval"]


def interval(text: str | int) -> tuple[int, float | None]:
    """Return an interval as steps, or as epochs: `250`, `2epochs`.

    Raises:
        UsageError: if it is neither.
    """
    said = str(text).strip().lower()
    number = said.removesuffix("epochs").removesuffix("epoch").strip()
    try:
        if number == said:
            steps, epochs = int(said), None
        else:
            steps, epochs = 0, float(number)
    except ValueError:
        steps, epochs = -1, None
    if steps < 0 or (epochs is not None and not 0 < epochs < math.inf):
        raise UsageError(
            f"{text!r} is not an interval", expected="steps, or epochs such as 2epochs"
        )
    return steps, epochs


def in_steps(spec: Spec, order: Order, processes: int = 1) -> Spec:
    """Return a specification whose length and intervals are steps.

    Args:
        order: of the images that are trained on.
        processes: that train together, each on batches of its own.
    """
    each = spec.settings.accumulate * processes
    if spec.epochs is not None:
        steps = max(1, math.ceil(order.batches_of(spec.epochs) / each))
        warmup = min(int(steps * spec.warmup), steps - 1)
        spec = replace(spec, settings=replace(spec.settings, steps=steps, warmup_steps=warmup))
    if spec.save_epochs is not None:
        every = max(1, math.ceil(order.batches_of(spec.save_epochs) / each))
        spec = replace(spec, save_every=every)
    return spec
