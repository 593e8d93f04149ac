"""The processes of distributed training: their ranks, and averaged gradients.

`accelerate launch` starts them. Each takes batches of its own, and gradients are averaged before each
step, so all processes hold the same values. Only the first one writes files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch

from loramerge.errors import UsageError

__all__ = ["ALONE", "Workers", "begin_workers", "half_precision", "usual_precision"]

# time that a process waits for another, which may be encoding or generating images for all
_PATIENCE = timedelta(hours=12)
# variables in which torchrun and the variants of mpirun give the number of processes
_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class Workers:
    """This process among those that train together.

    Args:
        rank: its number, from 0.
        count: number of all processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """True in the process that writes files."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes have reached this point."""
        if self.count > 1:
            torch.distributed.barrier()

    def mean(self, parameters: Sequence[Any], loss: float) -> float:
        """Put the mean over all processes into every gradient; return the mean loss."""
        if self.count == 1:
            return loss
        there = [p.grad for p in parameters if p.grad is not None]
        place = there[0].device if there else parameters[0].device
        whole = torch.cat([*(g.reshape(-1).float() for g in there), torch.tensor([loss]).to(place)])
        torch.distributed.all_reduce(whole)
        whole /= self.count
        start = 0
        for gradient in there:
            gradient.copy_(whole[start : start + gradient.numel()].reshape(gradient.shape))
            start += gradient.numel()
        return float(whole[-1])


ALONE = Workers()


def begin_workers(device: str | None) -> tuple[Workers, Any]:
    """Return this process among the others, and the torch device it trains on.

    Args:
        device: None takes a GPU if there is one.

    Raises:
        UsageError: if the device does not exist.
    """
    if any(int(os.environ.get(name, "1")) > 1 for name in _COUNTS):
        from accelerate import PartialState

        state = PartialState(
            cpu=device == "cpu" or not torch.cuda.is_available(), timeout=_PATIENCE
        )
        return Workers(state.process_index, state.num_processes), state.device
    if device is None:
        for name in ("cuda", "mps"):
            backend = torch.backends.mps if name == "mps" else torch.cuda
            if backend.is_available():
                return ALONE, torch.device(name)
        return ALONE, torch.device("cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UsageError("this device is not available", found=f"{device} ({first})") from None
    return ALONE, place


def half_precision(device: Any) -> Literal["bf16", "fp16"] | None:
    """Return the half precision that a device trains in, or None if it is not known."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if device.type == "cpu" else None


def usual_precision(device: str | None) -> Literal["no", "bf16"]:
    """Return the default precision: bf16 on a GPU that supports it, else no."""
    wanted = device is None or device.startswith("cuda")
    able = wanted and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bf16" if able else "no"
