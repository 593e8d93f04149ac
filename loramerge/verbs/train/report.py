"""The figures of a finished run that its report shows, and the report in the run's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loramerge.adapter.load import load
from loramerge.files.folders import RUN_LOG
from loramerge.files.writer import write_bytes
from loramerge.steps.parameters import Context, stated
from loramerge.verbs.inspect import Inspect, inspect_adapter

if TYPE_CHECKING:
    from loramerge.verbs.train.parameters import Train
    from loramerge.verbs.train.result import TrainResult

__all__ = ["with_figures", "write_report"]

_NAME = "report.html"
_CURVES = {"loss": "loss", "validation loss": "validation", "gradients": "gradient"}


def with_figures(result: TrainResult, parameters: Train, context: Context) -> TrainResult:
    """Return a result with the curves of its log and the findings about its adapter."""
    from loramerge.files.run_log import read_log

    entries = list(read_log(Path(result.folder) / RUN_LOG))
    curves = {
        name: [entry[key] for entry in entries if entry.get(key) is not None]
        for name, key in _CURVES.items()
    }
    result = replace(result, given=_settings(parameters), curves=curves)
    if result.output is not None:
        found = inspect_adapter(
            load(result.output), Inspect(files=()), replace(context, details=True)
        )
        result.findings, result.measured = found.findings, found.measured or []
    return result


def write_report(result: TrainResult) -> Path:
    """Write the report into the run's folder; return its path."""
    from loramerge.report.page import page
    from loramerge.report.results.train import report

    path = Path(result.folder) / _NAME
    write_bytes(path, page(report(result)), force=True)
    return path


def _settings(parameters: Train) -> dict[str, Any]:
    """Return the given settings; of folders only the names."""
    found: dict[str, Any] = {}
    for one, value in stated(parameters):
        named = one.refers or one.name in ("folder", "cache")
        found[one.word.replace("_", " ")] = Path(value).name if named else value
    return found
