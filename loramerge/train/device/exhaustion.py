"""Out of memory: the commonest end of a training run, named as what it is.

with naming_exhaustion(device, "encoding images", advice):
    …
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from traceback import clear_frames
from typing import Any

import torch

from loramerge.errors import Message, OutOfMemory, Setting, sized

__all__ = ["is_exhaustion", "joined", "naming_exhaustion", "release_cache"]

# what torch, cuBLAS, cuDNN, Metal and the C library say
_SAYS = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) ?(bytes|[KMGT]iB|[KMGT]B)?")
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
          "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}  # fmt: skip


@contextmanager
def naming_exhaustion(
    device: Any, doing: str | Callable[[], str], advice: Callable[[], Message]
) -> Iterator[None]:
    """Turn the errors of an exhausted memory into one that says what to do.

    Args:
        device: the torch device.
        doing: the work at hand, such as "encoding images".
        advice: gives the hint.

    Raises:
        OutOfMemory: in the place of what torch raises.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_exhaustion(error):
            raise
        needed, found = _figures(device, str(error))
        clear_frames(error.__traceback__)  # they hold the tensors of the failed work
        release_cache(device)
        raise OutOfMemory(
            f"{device} ran out of memory while {doing if isinstance(doing, str) else doing()}",
            expected=needed,
            found=found,
            hint=advice(),
        ) from None


def is_exhaustion(error: BaseException) -> bool:
    """Return whether an error says that there is no more memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return any(says.lower() in text.lower() for says in _SAYS)


def _figures(device: Any, text: str) -> tuple[str | None, str | None]:
    """Return the memory needed and the memory present, in words."""
    match = _ASKED.search(text)
    asked = int(float(match[1]) * _UNITS.get(match[2] or "", 1)) if match else None
    more = None if asked is None else f"{sized(asked)} more"
    if device.type != "cuda":
        return more, None
    try:
        held = torch.cuda.memory_allocated(device)
        free, total = torch.cuda.mem_get_info(device)
        own = torch.cuda.memory_reserved(device)
    except (RuntimeError, AssertionError):
        return more, None
    needed = None if asked is None else f"at least {sized(held + asked)}"
    others = max(0, total - free - own)
    return needed, f"{sized(total)} on the device, of which other programs hold {sized(others)}"


def release_cache(device: Any) -> None:
    """Give the device what torch keeps for later, so that the next phase begins with all of it."""
    if device.type == "cuda" and torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif device.type == "mps" and torch.backends.mps.is_available():
        torch.mps.empty_cache()


def joined(parts: list[Message]) -> Message:
    """Return several remedies as one hint."""
    found: list[str | Setting] = []
    for part in parts:
        found += [*([" · "] if found else []), *([part] if isinstance(part, str) else part)]
    return tuple(found)
