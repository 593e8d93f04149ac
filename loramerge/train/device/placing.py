"""Move models to a device for as long as they are used, so that the GPU holds nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["placed"]


@contextmanager
def placed(device: Any, *models: Any) -> Iterator[None]:
    """Move models to a device, and back to main memory at the end; their values do not change."""
    for model in models:
        model.to(device)
    try:
        yield
    finally:
        for model in models:
            model.to("cpu")
