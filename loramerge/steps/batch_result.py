"""The outcome of a verb on several files: of each, of all together, and their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from loramerge.steps.adapters import AdapterResult

__all__ = ["COLUMNS", "FileOutcome", "FilesResult", "Result"]

COLUMNS = (
    "file", "output", "status", "size_before", "size_after", "norm_kept", "relative_error",
    "worst_module", "worst_error", "reason",
)  # fmt: skip
_THERE = ("done", "kept", "copied")  # statuses of files whose output exists
_TOP = ("relative_error", "norm_kept", "scale_applied", "worst")  # figures one file has at the top

Result = TypeVar("Result", bound=AdapterResult)


@dataclass
class FileOutcome(Generic[Result]):
    """The outcome of one of several files.

    Args:
        status: `done`, `kept` (already there), `skipped` (not wanted), `copied` (instead) or `failed`.
        result: of what was computed; of several files without the adapter, which is in its file.
    """

    path: str
    status: str
    output: str | None = None
    result: Result | None = None
    size_before: int | None = None
    reason: str | None = None
    exit_code: int = 0
    parameters: Any = None  # that made the result

    def row(self) -> list[Any]:
        """Return the file's line in the CSV table."""
        r = self.result
        worst = r.worst if r and r.worst else (None, None)
        return [
            self.path, self.output, self.status, self.size_before, r.size if r else None,
            r.norm_kept if r else None, r.relative_error if r else None, *worst, self.reason,
        ]  # fmt: skip

    def json(self, figures: Sequence[str]) -> dict[str, Any]:
        """Return this file's object in `--json`; keys are always present, null if not computed."""
        found = {} if self.result is None else self.result.json()
        return {
            "path": self.path,
            "status": self.status,
            "output": self.output,
            "size_before": self.size_before,
            **{name: found.get(name) for name in figures},
            "reason": self.reason,
        }


@dataclass
class FilesResult(Generic[Result]):
    """The outcome of every file.

    Args:
        not_adapters: files and folders that were left out, because they lie in a folder that was
            given and are not adapters.
    """

    files: list[FileOutcome[Result]]
    figures: Sequence[str] = field(default=())
    not_adapters: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """The code of the first failure, 0 if none."""
        return next((f.exit_code for f in self.files if f.exit_code), 0)

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints; one file's figures also stand at the top."""
        outputs = [f.output for f in self.files if f.output and f.status in _THERE]
        first = self.files[0].json(self.figures) if len(self.files) == 1 else {}
        figures = {name: first[name] for name in _TOP if name in first}
        files = [f.json(self.figures) for f in self.files]
        return {
            "outputs": outputs,
            **figures,
            "files": files,
            "not_adapters": self.not_adapters,
        }
