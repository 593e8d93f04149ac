"""The result of taking adapters out of a checkpoint, and how exact it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from loramerge.steps.shown import Shown

__all__ = ["UnbakeResult"]


@dataclass(repr=False)
class UnbakeResult(Shown):
    """A checkpoint without some adapters, and how exact it is.

    Args:
        restored: number of tensors that have the bytes of the base again.
        rounding: norm of what rounding changed in this step, relative to that of the weights that
            were computed; None where none was, and for a dry run.
        distance: ‖result − base‖ / ‖base‖ of the tensors that differ from the base, where it is given.
        differing: number of these.
    """

    headline = ("output", "family", "modules", "restored", "distance")

    output: str
    dry_run: bool
    checkpoint: str
    base: str | None
    family: str
    modules: int
    tensors: int
    adapters: list[dict[str, str]]
    skipped: list[str]
    dtypes: list[str]
    restored: int = 0
    size: int | None = None
    change: float | None = None
    rounding: float | None = None
    distance: float | None = None
    differing: int | None = None
    touched: list[dict[str, Any]] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {
            "outputs": [] if self.dry_run else [self.output],
            "output": self.output,
            "dry_run": self.dry_run,
            "checkpoint": self.checkpoint,
            "base": self.base,
            "family": self.family,
            "modules": self.modules,
            "tensors": self.tensors,
            "adapters": self.adapters,
            "skipped": self.skipped,
            "dtypes": self.dtypes,
            "restored": self.restored,
            "size": self.size,
            "change": self.change,
            "rounding": self.rounding,
            "relative_distance": self.distance,
            "differing": self.differing,
            "touched": self.touched,
        }
