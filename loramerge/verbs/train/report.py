"""The report of a run: settings, data, curves, samples, and the findings of inspect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loramerge.adapter.load import load
from loramerge.files.folders import RUN_LOG
from loramerge.files.writer import write_bytes
from loramerge.steps.parameters import stated
from loramerge.verbs.inspect import Inspect, inspect_adapter

if TYPE_CHECKING:
    from loramerge.verbs.train.parameters import Train
    from loramerge.verbs.train.result import TrainResult

__all__ = ["write_report"]

_NAME = "report.html"


def write_report(result: TrainResult, parameters: Train) -> Path:
    """Write the report into the run's folder; return its path."""
    from loramerge.report.page import curve, image, listing, page, table
    from loramerge.train.run.log import read_log

    folder = Path(result.folder)
    entries = list(read_log(folder / RUN_LOG))
    losses = [entry["loss"] for entry in entries if entry.get("loss") is not None]
    held = [entry["validation"] for entry in entries if entry.get("validation") is not None]
    norms = [entry["gradient"] for entry in entries if entry.get("gradient") is not None]
    sections = [
        ("Result", table(_result(result))),
        ("Samples", image(folder / "samples.png", "samples by step and prompt")),
        ("Loss", curve(losses, "loss")),
        ("Validation loss", curve(held, "loss on the images that are held back")),
        ("Gradients", curve(norms, "norm of the gradients before clipping")),
        ("Data", listing(("", line) for line in result.notes)),
        ("Settings that were given", table(_settings(parameters))),
        (
            "All settings",
            table({name.replace("_", " "): _shown(value) for name, value in result.used.items()}),
        ),
        ("Findings", listing(_findings(result))),
    ]
    path = folder / _NAME
    title = Path(result.output or result.folder).name
    write_bytes(path, page(f"{title}: trained by loramerge", sections), force=True)
    return path


def _settings(parameters: Train) -> dict[str, Any]:
    """Return the given settings; of folders only the names."""
    found: dict[str, Any] = {}
    for one, value in stated(parameters):
        named = one.refers or one.name in ("folder", "cache")
        found[one.word.replace("_", " ")] = Path(value).name if named else value
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


def _result(result: TrainResult) -> dict[str, Any]:
    rows: dict[str, Any] = {
        "file": Path(result.output or "").name,
        "dialect": f"{result.dialect}, {result.dtype}",
        "family": result.family or "none that is known",
        "modules": result.modules,
        "ranks": ", ".join(f"{rank} ×{count}" for rank, count in result.ranks.items()),
        "trained": f"{result.trained} parameters, {result.done} steps, {result.epochs:.3g} epochs",
    }
    if result.loss is not None:
        rows["loss"] = f"from {result.loss[0]:.4f} to {result.loss[1]:.4f}"
    if result.unfinished:
        rows["unfinished"] = f"stopped after step {result.done} of {result.steps}"
    if result.skipped:
        rows["left out"] = f"{result.skipped} steps whose gradients were not finite"
    return rows


def _findings(result: TrainResult) -> list[tuple[str, str]]:
    """Return (severity, text) of what inspect finds."""
    if result.output is None:
        return []
    inspected = inspect_adapter(load(result.output), Inspect(files=(), deep=True)).json()
    found = [
        (one["severity"], f"{one['module'] or ''} {one['message']}".strip())
        for one in inspected.get("findings", [])
    ]
    return found or [("", "No problems found.")]
