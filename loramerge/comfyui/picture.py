"""Norms of an adapter's blocks, and pictures as ComfyUI passes them on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from loramerge.adapter import Adapter
from loramerge.report.bars import Bar

__all__ = ["blocks_of", "image_tensor"]


def blocks_of(adapter: Adapter, modules: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """Return the norm of the change of each block, `√Σ‖ΔW‖²` over its modules, in their order.

    Args:
        modules: rows with `module` and `norm`, as `inspect` with `modules` lists them.
    """
    energy: dict[str, float] = {}
    for row in modules:
        block = _block(str(row["module"]))
        norm = row.get("norm")
        if isinstance(norm, (int, float)):
            energy[block] = energy.get(block, 0.0) + float(norm) ** 2
    return [Bar(name, math.sqrt(value)) for name, value in energy.items()]


def _block(module: str) -> str:
    """Return the block of a module: its name up to the number of the block, `unet.down_blocks.1`."""
    parts = module.split("+")[0].split(".")
    place = next((n for n, part in enumerate(parts) if part.isdigit()), None)
    if place is not None:
        return ".".join(parts[: place + 1])
    return ".".join(parts[:2])


def image_tensor(picture: Any) -> Any:
    """Return a picture of Pillow as an image of ComfyUI.

    Returns:
        float32 of shape `(1, height, width, 3)`, from 0 to 1.
    """
    import numpy as np
    import torch

    values = np.asarray(picture.convert("RGB"), np.float32) / 255.0
    return torch.from_numpy(values)[None]
