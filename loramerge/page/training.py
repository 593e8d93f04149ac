"""The progress of a training run: its losses, and the sheet of its samples."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loramerge.errors import LoramergeError
from loramerge.files.folders import RUN_LOG, RUN_SAMPLES
from loramerge.files.run_log import read_log
from loramerge.library.paths import below
from loramerge.page.actions import Action
from loramerge.page.history import Job
from loramerge.page.places import Places
from loramerge.steps.parameters import Context

__all__ = ["Training", "run_folder_of", "thinned", "training"]

_POINTS = 500  # of a curve
_WIDEST = 1600  # pixels of the sheet
_MOST = 400 << 20  # bytes of a sheet that is read
_TALLEST = 6000  # pixels
_sheets: dict[tuple[str, int, int], bytes] = {}

Curve = list[tuple[int, float]]  # step, loss


@dataclass
class Training:
    """The losses and samples of a run so far.

    Args:
        steps: those that are done.
        losses, validation: means over equal parts of the run where there are too many to draw.
        samples: the sheet as PNG; None if there is none.
        findings: warnings and notes of the job.
    """

    steps: int = 0
    losses: Curve = field(default_factory=list)
    validation: Curve = field(default_factory=list)
    samples: bytes | None = None
    findings: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Return what the page gets, without the sheet."""
        return {
            "steps": self.steps,
            "losses": [list(point) for point in self.losses],
            "validation": [list(point) for point in self.validation],
            "findings": self.findings,
        }


def run_folder_of(action: Action, places: Places) -> str | None:
    """Return the folder that a training run writes to; None for other actions."""
    if action.verb.name != "train" or action.parameters.dry_run:
        return None
    from loramerge.verbs.train.places import output_path, run_folder

    try:
        path = output_path(action.parameters, Context(root=places.folder))
    except LoramergeError:
        return None  # the run says so
    return str(places.writable(below(places.folder, str(run_folder(action.parameters, path)))))


def training(job: Job, places: Places) -> Training:
    """Return what the run of a job has written; nothing where it is none.

    Raises:
        UsageError: if the page may no longer read the run's folder.
    """
    findings = [str(one.get("text")) for one in job.events if isinstance(one, dict)]
    if job.folder is None:
        return Training(findings=findings)
    folder = places.allowed(job.folder)
    try:
        entries = list(read_log(folder / RUN_LOG))
    except (OSError, ValueError):
        entries = []
    steps = [one["step"] for one in entries if isinstance(one["step"], int)]
    losses, validation = (_curve(entries, word) for word in ("loss", "validation"))
    done = max(steps, default=-1) + 1
    return Training(done, losses, validation, _sheet(folder / RUN_SAMPLES), findings)


def _curve(entries: Sequence[dict[str, Any]], word: str) -> Curve:
    points = [
        (one["step"] + 1, float(one[word]))
        for one in entries
        if isinstance(one["step"], int) and isinstance(one.get(word), (int, float))
    ]
    return thinned(points, _POINTS)


def thinned(points: Sequence[tuple[int, float]], most: int) -> Curve:
    """Return at most so many points: each the last step and the mean of an equal part of them."""
    if len(points) <= most:
        return list(points)
    found = []
    for n in range(most):
        part = points[n * len(points) // most : (n + 1) * len(points) // most]
        found.append((part[-1][0], sum(value for _, value in part) / len(part)))
    return found


def _sheet(path: Path) -> bytes | None:
    """Return the sheet of samples, made smaller where it is large; None where there is none."""
    try:
        status = path.stat()
        key = (str(path), status.st_size, status.st_mtime_ns)
        if key not in _sheets:
            made = _smaller(path) if status.st_size <= _MOST else None
            if made is None:
                return None
            _sheets.clear()
            _sheets[key] = made
        return _sheets[key]
    except (OSError, ValueError):
        return None


def _smaller(path: Path) -> bytes | None:
    try:
        from PIL import Image
    except ImportError:
        return None
    out = io.BytesIO()
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.thumbnail((_WIDEST, _TALLEST))
            picture.convert("RGB").save(out, "PNG")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # it is being replaced, or no run has written it
    return out.getvalue()
