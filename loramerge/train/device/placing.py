"""Move models to a device for as long as they are used, so that the GPU holds nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from loramerge.train.device.exhaustion import release_cache

__all__ = ["elsewhere", "placed"]


@contextmanager
def elsewhere(device: Any, *models: Any) -> Iterator[None]:
    """Move models off a device for a while, to make room; on a CPU they stay."""
    away = [] if torch.device(device).type == "cpu" else models
    for model in away:
        model.to("cpu")
    if away:
        release_cache(torch.device(device))
    try:
        yield
    finally:
        for model in away:
            model.to(device)


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
        release_cache(torch.device(device))
