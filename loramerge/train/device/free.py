"""The free memory of a device."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

__all__ = ["free_memory"]

_CGROUP = Path("/sys/fs/cgroup")  # version 2, as containers see their own


def free_memory(device: Any) -> int | None:
    """Return the free bytes of a device, or None if they are not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        most = getattr(torch.mps, "recommended_max_memory", None)
        return None if most is None else int(most()) - int(torch.mps.driver_allocated_memory())
    if device.type != "cpu":
        return None
    known = [value for value in (_of_machine(), _of_container()) if value is not None]
    return min(known, default=None)


def _of_machine() -> int | None:
    """Return the bytes that the system reports as available, without swap."""
    try:
        return int(import_module("psutil").virtual_memory().available)  # accelerate installs it
    except (ImportError, AttributeError, OSError):
        return None


def _of_container(folder: Path = _CGROUP) -> int | None:
    """Return the rest of a container's limit; cached files count as free."""
    try:
        most = int((folder / "memory.max").read_text("ascii"))  # "max" is none
        used = int((folder / "memory.current").read_text("ascii"))
        lines = (folder / "memory.stat").read_text("ascii").splitlines()
        cached = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    except (OSError, ValueError, StopIteration):
        return None
    return max(0, most - used + cached)
