"""Curves and samples of a run as events of TensorBoard, which a resumed run goes on writing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loramerge.errors import MissingExtra
from loramerge.train.run.loop import TrainStep

__all__ = ["BOARD", "Board", "require_tensorboard"]

BOARD = "tensorboard"


def require_tensorboard() -> Any:
    """Return torch's writer of events.

    Raises:
        MissingExtra: if the package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtra(
            "writing events for TensorBoard needs the package tensorboard",
            hint="pip install 'loramerge[tensorboard]'",
        ) from None
    return SummaryWriter


class Board:
    """Writes the events, each at the number of steps that were done.

    So the sample of the base stands at 0, and a loss beside the sample that its step led to.

    Args:
        folder: of the run.
        done: steps that are done; what was written of later ones is no longer shown.
    """

    def __init__(self, folder: Path, done: int) -> None:
        # of a run that begins anew nothing old counts, not even the sample of step 0
        first = done + 1 if done else 0
        self._writer: Any = require_tensorboard()(str(folder / BOARD), purge_step=first)

    def __call__(self, step: TrainStep) -> None:
        """Write what a step did."""
        values = {"loss": step.loss, "rate": step.rate, "gradient": step.norm}
        for name, value in values.items():
            self._writer.add_scalar(name, value, step.number + 1)

    def validated(self, done: int, loss: float) -> None:
        """Write a loss on the images that are held back."""
        self._writer.add_scalar("validation", loss, done)

    def show(self, prompts: Sequence[str], pictures: Sequence[Any], done: int) -> None:
        """Write the samples of a step."""
        import numpy as np

        for index, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
            name = f"samples/{index} {prompt[:80]}".rstrip()
            self._writer.add_image(name, np.asarray(picture), done, dataformats="HWC")

    def flush(self) -> None:
        """Put on the disk what was written, so that a state never knows more than it."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
