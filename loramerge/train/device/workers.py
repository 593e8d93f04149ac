"""The processes of distributed training: their ranks, and averaged gradients.

`accelerate launch` starts them. Each takes batches of its own, and gradients are averaged before each
step, so all processes hold the same values. Only the first one writes files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch

from loramerge.errors import UsageError

__all__ = ["ALONE", "Workers", "begin_workers", "half_precision", "usual_precision"]

# time that a process waits for another, which may be encoding or generating images for all
_PATIENCE = timedelta(hours=12)
_PIECE = 1 << 24  # numbers exchanged at a time: 64 MB beside the gradients, whatever is trained
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

    def any(self, mine: bool, place: Any = "cpu") -> bool:
        """Return whether something holds in any of the processes.

        Args:
            place: device of the tensors that are exchanged.
        """
        if self.count == 1:
            return mine
        found = torch.tensor([float(mine)], device=place)
        torch.distributed.all_reduce(found)
        return bool(found.item())

    @torch.no_grad()
    def mean(self, parameters: Sequence[Any], loss: float, images: int) -> float:
        """Put the mean over the images of all processes into every gradient; return the mean loss.

        Args:
            loss: mean over the images of this process.
            images: their number.
        """
        if self.count == 1:
            return loss
        there = [p.grad for p in parameters if p.grad is not None]
        place = there[0].device if there else parameters[0].device
        total = torch.tensor([float(images)], device=place)
        torch.distributed.all_reduce(total)
        share = images * self.count / float(total)  # exactly 1 where all have as many
        for part in _pieces(there):
            whole = torch.cat([gradient.reshape(-1).float() for gradient in part])
            torch.distributed.all_reduce(whole.mul_(share))
            whole /= self.count
            start = 0
            for gradient in part:
                gradient.copy_(whole[start : start + gradient.numel()].reshape(gradient.shape))
                start += gradient.numel()
        losses = torch.tensor([loss * share], device=place)
        torch.distributed.all_reduce(losses)
        return float(losses) / self.count


ALONE = Workers()


def _pieces(gradients: Sequence[Any], most: int = _PIECE) -> Iterator[list[Any]]:
    """Yield gradients in groups of at most so many numbers; a larger one stands alone."""
    piece: list[Any] = []
    size = 0
    for gradient in gradients:
        if piece and size + gradient.numel() > most:
            yield piece
            piece, size = [], 0
        piece.append(gradient)
        size += gradient.numel()
    if piece:
        yield piece


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


def _has_bf16() -> bool:
    """Return whether the GPU computes in bfloat16 itself; emulated it is slower than float32."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def half_precision(device: Any) -> Literal["bf16", "fp16"] | None:
    """Return the half precision that a device trains in, or None if it is not known."""
    if device.type == "cuda":
        return "bf16" if _has_bf16() else "fp16"
    return "bf16" if device.type == "cpu" else None


def usual_precision(device: str | None) -> Literal["no", "bf16"]:
    """Return the default precision: bf16 on a GPU that supports it, else no."""
    wanted = device is None or device.startswith("cuda")
    able = wanted and torch.cuda.is_available() and _has_bf16()
    return "bf16" if able else "no"
