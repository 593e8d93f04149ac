"""The result of a bake: its changes, and the part kept after rounding."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loramerge.checkpoint import CheckpointFile
from loramerge.errors import listed
from loramerge.events import Event, Note
from loramerge.steps.foreseen import change_of
from loramerge.steps.shown import Shown
from loramerge.stream.edits import BakePlan, Edit
from loramerge.stream.survival import Survival, Totals

__all__ = ["BakeResult", "add_forecast", "add_survival", "described", "grown", "storage_of"]


@dataclass(repr=False)
class BakeResult(Shown):
    """The result of a bake, and the part of the change that was kept after rounding.

    Args:
        dtypes: types of the tensors that change, as written.
        touched: one entry for each module and tensor that changes.
        size: bytes of all files; of a dry run, those that they will have.
        survived: ⟨ΔW_written, ΔW_asked⟩ / ‖ΔW_asked‖² over all modules; of a dry run, a forecast.
        change: ‖ΔW‖ / ‖W‖ over the modules that change.
        worst: the module with the largest relative error, and this error.
        estimated: from how many tensors the forecast of a dry run is; None if from all.
        refused: of a dry run, the exit code with which the run would end; None if none is foreseen.
        storage: the form that weights get, where it is another; how many tensors have it; and
            ‖W_written − W‖ / ‖W‖ over all tensors that are stored anew, None for a dry run.
        drift: block → (relative distance of the bases, the same inside the adapters' subspace), where
            `trained_on` was given.
    """

    headline = ("output", "family", "modules", "survived")

    output: str
    dry_run: bool
    base: str
    family: str
    layouts: dict[str, str]
    modules: int
    tensors: int
    adapters: list[dict[str, Any]]
    skipped: list[str]
    notes: list[str]
    dtypes: list[str]
    touched: list[dict[str, Any]] = field(default_factory=list)
    size: int | None = None
    survived: float | None = None
    relative_error: float | None = None
    change: float | None = None
    worst: tuple[str, float] | None = None
    estimated: str | None = None
    refused: int | None = None
    storage: dict[str, Any] | None = None
    drift: dict[str, tuple[float, float]] | None = None
    drift_total: tuple[float, float] | None = None

    @property
    def exit_code(self) -> int:
        """0, or that of the refusal which a dry run foresees."""
        return self.refused or 0

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        worst = self.worst
        norm_kept = None
        if self.relative_error is not None:
            norm_kept = math.sqrt(max(0.0, 1.0 - self.relative_error**2))
        return {
            "outputs": [] if self.dry_run else [self.output],
            "output": self.output,
            "dry_run": self.dry_run,
            "base": self.base,
            "family": self.family,
            "layouts": self.layouts,
            "modules": self.modules,
            "tensors": self.tensors,
            "adapters": self.adapters,
            "skipped": self.skipped,
            "notes": self.notes,
            "size": self.size,
            "survived": self.survived,
            "relative_error": self.relative_error,
            "norm_kept": norm_kept,
            "scale_applied": 1.0,
            "change": self.change,
            "worst": {"module": worst[0], "relative_error": worst[1]} if worst else None,
            **({"estimated": self.estimated, "refused": self.refused} if self.dry_run else {}),
            "storage": self.storage,
            "drift": self.drift,
            "drift_total": self.drift_total,
            "touched": self.touched,
        }


def described(plan: BakePlan, file: CheckpointFile, name: str, edit: Edit) -> dict[str, Any]:
    """Return an edit as listed by a dry run, with the type that the tensor will have."""
    found = change_of(edit.site, edit.place, plan.written(file, name, edit))
    return {**found, "adapters": len(edit.deltas)}


def add_survival(result: BakeResult, totals: Totals, survivals: Sequence[Survival]) -> None:
    """Add the figures of rounding to a result."""
    result.survived = totals.survived
    result.relative_error = totals.relative_error
    result.change = totals.change
    result.worst = (totals.worst.module, totals.worst.relative_error)
    result.touched = [
        {
            "module": s.module,
            "tensor": s.tensor,
            "survived": s.survived,
            "relative_error": s.relative_error,
            "change": s.change,
        }
        for s in survivals
        if s.module
    ]


def add_forecast(result: BakeResult, found: Mapping[str, Any]) -> None:
    """Add what `steps.loss.forecast` measured to the result of a dry run."""
    result.survived = found["kept"]
    result.relative_error = found["relative_error"]
    result.change = found["change"]
    result.worst = (found["worst"]["module"], found["worst"]["relative_error"])
    result.estimated = found["estimated"]


def storage_of(plan: BakePlan) -> dict[str, Any] | None:
    """Return what a plan says of another storage, None without one."""
    if plan.conversion is None:
        return None
    forms = [form.name for one in plan.conversion.forms.values() for form in one.values()]
    counts = {name: forms.count(name) for name in sorted(set(forms))}
    return {"name": plan.conversion.label, "tensors": counts, "relative_error": None}


def grown(totals: Totals) -> Iterator[Event]:
    """Yield a note on scales that grew."""
    if totals.rescaled:
        yield Note(
            f"{len(totals.rescaled)} tensors got a larger scale, because their new values did "
            f"not fit the old one: {listed(totals.rescaled, 3)}"
        )
