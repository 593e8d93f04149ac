"""A task: one step of a recipe in one case of its sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loramerge.steps.parameters import Verb

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    """A step in one case, ready to run.

    Args:
        name: `blend`, or `blend[w=0.5]`.
        case: the values of the sweep's variables that it depends on.
        parameters: of the verb; names of steps in them are names of tasks.
        save: file to write; None hands the result on in memory.
        needs: tasks whose results it takes.
        files: name in the parameters → its file, for all names that are not tasks.
    """

    name: str
    step: str
    case: Mapping[str, Any]
    verb: Verb
    parameters: Any
    save: Path | None
    needs: tuple[str, ...]
    files: Mapping[str, Path]

    @property
    def lasts(self) -> bool:
        """True if something remains of it after the run: a file, or a report."""
        return self.save is not None or self.verb.gives == "report"
