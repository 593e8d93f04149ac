"""Estimate the time of generating an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loramerge.train.memory.estimate import forward_seconds, shape_of

__all__ = ["image_seconds"]


def image_seconds(
    base: Path, device: Any, *, steps: int, size: int | None = None, half: bool = False
) -> float | None:
    """Estimate the seconds of an image without its decoding; None where the base has no configurations.

    Args:
        steps: of the sampler.
        size: side in pixels [default: the base's].
        half: whether numbers have two bytes instead of four.
    """
    shape = shape_of(base)
    if shape is None:
        return None
    side = (size or shape.resolution) // shape.unit * shape.unit
    guided = shape.architecture.guidance(shape.denoiser) == "classifier-free"
    width = 2 if half else 4
    each = forward_seconds(shape, (side, side), device, batch=1 + guided, width=width)
    return steps * each
