"""Decode large images in overlapping tiles, which needs less memory and changes an image slightly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["TILE", "in_tiles"]

TILE = 512  # pixels of a side


@contextmanager
def in_tiles(vae: Any, factor: int) -> Iterator[None]:
    """Let a VAE of diffusers decode in tiles for a while.

    Args:
        factor: pixels of one latent along a side.
    """
    names = ("use_tiling", "tile_sample_min_size", "tile_latent_min_size")
    before = {name: getattr(vae, name) for name in names}
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // factor
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)
