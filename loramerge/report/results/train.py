"""The report of `train`: settings, data, curves, samples, and the problems that inspect finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from loramerge.report.blocks import of_rows
from loramerge.report.document import (
    FactList,
    ImagePart,
    Line,
    Lines,
    Notes,
    Part,
    Report,
    Section,
    facts,
    number,
)  # fmt: skip
from loramerge.report.plain import plain_report
from loramerge.report.results.inspect import findings, shape_figures

__all__ = ["curve", "report"]

_CAPTIONS = {
    "loss": "Mean loss of each step (pale), and its running mean over a twentieth of the run.",
    "validation loss": "Loss on the images that are held back.",
    "gradients": "Norm of the gradients before clipping.",
}


def report(result: Any) -> Report:
    """Return the report of a `TrainResult`."""
    if result.check is not None:
        return _of_dry_run(result)
    name = PurePath(result.output or result.folder).name
    weights = shape_figures({"": of_rows(result.measured)}) if result.measured else []
    settings = {name.replace("_", " "): _shown(value) for name, value in result.used.items()}
    return Report(
        f"{name}: trained by loramerge",
        _lead(result),
        [
            Section("Result", [_result(result)]),
            Section("Samples", _samples(result)),
            Section("Curves", [curve(values, name) for name, values in result.curves.items()]),
            Section("Data", [Notes(tuple(("", line) for line in result.notes))]),
            Section("Problems", [_problems(result)]),
            Section("Weights", weights),
            Section("Settings that were given", [facts(result.given)]),
            Section("All settings", [facts(settings)]),
        ],
    )


def _of_dry_run(result: Any) -> Report:
    found = result.check.json()
    lead = f"A dry run: {found['images']} images, {found['steps']} steps. Nothing was trained."
    return replace(plain_report(PurePath(result.folder).name, found), lead=lead)


def _lead(result: Any) -> str:
    if result.unfinished:
        return f"Stopped after step {result.done} of {result.steps}."
    images = f"{result.images} {'image' if result.images == 1 else 'images'}"
    return f"{result.done} steps, {result.epochs:.3g} epochs of {images}."


def _result(result: Any) -> FactList:
    first, last = result.loss or (None, None)
    loss = None if first is None else f"from {first:.4f} to {last:.4f}"
    left_out = f"{result.skipped} steps whose gradients were not finite" if result.skipped else None
    return facts(
        {
            "file": PurePath(result.output or "").name,
            "dialect": f"{result.dialect}, {result.dtype}",
            "family": result.family or "none that is known",
            "modules": result.modules,
            "ranks": ", ".join(f"{rank} ×{count}" for rank, count in result.ranks.items()),
            "trained": f"{result.trained} parameters, {result.done} steps, {result.epochs:.3g} epochs",
            "loss": loss,
            "unfinished": f"stopped after step {result.done} of {result.steps}"
            if result.unfinished
            else None,
            "left out": left_out,
        }
    )


def _samples(result: Any) -> list[Part]:
    path = Path(result.folder) / "samples.png"
    return [ImagePart(path.read_bytes(), "Samples by step and prompt")] if path.is_file() else []


def _problems(result: Any) -> Notes:
    if result.output is None:
        return Notes(())
    return findings(result.findings) or Notes((("", "No problems found."),))


def curve(values: Sequence[float], name: str) -> Lines:
    """Return a figure of values over steps, with their running mean in front."""
    lines = [
        Line("each step", list(enumerate(values, 1)), faint=True),
        Line("running mean", list(enumerate(_smoothed(values), 1))),
    ]
    return Lines(
        name.capitalize(),
        _CAPTIONS.get(name, ""),
        lines=lines if len(values) > 1 else [],
        across="step",
        up=name,
        unit=lambda step: number(step, 6),
        from_zero=False,
    )


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return a running mean over a twentieth of the curve."""
    share = 1 / max(1, len(values) // 20)
    found = list(values[:1])
    for value in values[1:]:
        found.append(found[-1] + share * (value - found[-1]))
    return found


def _shown(value: Any) -> str:
    """Return a setting as text."""
    if value is None:
        return "as usual"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value)) or "none"
    return str(dict(value) or "none") if isinstance(value, Mapping) else str(value)
