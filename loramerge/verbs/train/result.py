"""The result of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loramerge.adapter import Problem
from loramerge.steps.adapters import AdapterResult

if TYPE_CHECKING:
    from loramerge.train.dry_run import Check

__all__ = ["NOTHING_MADE", "TrainResult"]

# the figures of a result without an adapter
NOTHING_MADE: dict[str, Any] = {
    "adapter": None, "family": None, "modules": 0, "ranks": {}, "lossy": False,
    "relative_error": 0.0, "norm_kept": 1.0, "worst": None, "left_out": [],
}  # fmt: skip


@dataclass(kw_only=True, repr=False)
class TrainResult(AdapterResult):
    """The trained adapter and the figures of its run.

    Args:
        folder: of the run.
        steps: number of all steps; `done`: those that are done, fewer if the run was interrupted;
            `resumed`: step at which the run was resumed; `skipped`: steps without an update.
        broken: True if no undisturbed run gives this result: it was interrupted, or continued with
            another number of steps.
        loss: mean over the first and over the last tenth of the steps.
        validation: the same of the images that are held back; None if there are none.
        chosen: settings chosen for the given memory, and the memory they need.
        check: findings of a dry run, which trains nothing.
        used: every setting of the run as it was used, defaults too.
        report, samples, log: paths in the folder.
        given: name → value of the settings that were given.
        curves: name → values of every step, for the report.
        findings: problems that inspect finds in the adapter.
        measured: norms and spectra of its modules, for the report.
    """

    folder: str
    steps: int = 0
    done: int = 0
    broken: bool = False
    resumed: int = 0
    skipped: int = 0
    trained: int = 0
    epochs: float = 0.0
    images: int = 0
    loss: tuple[float, float] | None = None
    validation: tuple[float, float] | None = None
    chosen: dict[str, Any] | None = None
    check: Check | None = None
    used: dict[str, Any] = field(default_factory=dict)
    report: str | None = None
    samples: str | None = None
    log: str | None = None
    notes: list[str] = field(default_factory=list)
    given: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    findings: list[Problem] = field(default_factory=list)
    measured: list[dict[str, Any]] = field(default_factory=list)

    @property
    def unfinished(self) -> bool:
        """True if the run was interrupted."""
        return self.done < self.steps and self.check is None

    @property
    def is_shown(self) -> bool:
        """False in a process that helped another, which shows the result."""
        return self.output is not None or self.check is not None

    @property
    def exit_code(self) -> int:
        """The code that the command ends with."""
        return 130 if self.unfinished else 0

    def json(self) -> dict[str, Any]:
        if self.check is not None:
            return {"outputs": [], "dry_run": True, **self.check.json()}
        return super().json() | {
            "folder": self.folder,
            "steps": self.steps,
            "done": self.done,
            "unfinished": self.unfinished,
            "resumed": self.resumed,
            "skipped": self.skipped,
            "parameters": self.trained,
            "epochs": round(self.epochs, 3),
            "images": self.images,
            "loss": _first_and_last(self.loss),
            "validation": _first_and_last(self.validation),
            "chosen": self.chosen,
            "settings": self.used,
            "report": self.report,
            "samples": self.samples,
            "log": self.log,
        }


def _first_and_last(losses: tuple[float, float] | None) -> dict[str, float] | None:
    return None if losses is None else {"first": losses[0], "last": losses[1]}
