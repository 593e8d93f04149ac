"""The result of a run of a recipe: an outcome for each task, as objects, JSON and a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from loramerge.adapter import Adapter
from loramerge.events import Event
from loramerge.recipe.recipe import Recipe
from loramerge.recipe.task import Task
from loramerge.recipe.variables import as_text, project
from loramerge.steps.shown import Shown

__all__ = ["Done", "Outcome", "RunResult", "figures_of"]

Scalar = str | int | float | bool | None


@dataclass
class Done:
    """The result of running a task; can be pickled.

    Args:
        result: the verb's, without its adapter.
        adapter: the result of a task that does not save.
        events: those that were kept because the task ran in another process.
    """

    result: Any
    adapter: Adapter | None
    seconds: float
    events: list[Event] = field(default_factory=list)


@dataclass
class Outcome:
    """The outcome of a task.

    Args:
        status: `done`, `up to date`, `not needed` (no task that uses it was run), `failed`, or
            `left out` (a task it needs failed).
        result: the verb's result, where the task ran now.
        figures: the numbers and words it reported, now or when it last ran.
    """

    task: Task
    status: str
    output: str | None = None
    result: Any = None
    figures: dict[str, Scalar] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None
    exit_code: int = 0

    def json(self) -> dict[str, Any]:
        """Return this task's object in `--json`."""
        return {
            "step": self.task.step,
            "case": dict(self.task.case),
            "verb": self.task.verb.name,
            "status": self.status,
            "output": self.output,
            "figures": self.figures,
            "error": self.error,
        }


@dataclass(repr=False)
class RunResult(Shown):
    """The result of a run, task by task."""

    headline = ("name", "counts")

    recipe: Recipe
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    lock: str | None = None

    @property
    def name(self) -> str:
        """The recipe's name."""
        return self.recipe.name

    @property
    def counts(self) -> dict[str, int]:
        """Number of tasks by status."""
        return dict(Counter(outcome.status for outcome in self.outcomes.values()))

    def table_rows(self) -> Iterator[tuple[str, ...]]:
        yield ("task", "verb", "status", "output", "error")
        for name, one in self.outcomes.items():
            yield (name, one.task.verb.name, one.status, one.output or "", one.error or "")

    @property
    def exit_code(self) -> int:
        """The code of the first failure, 0 if there was none."""
        return next((o.exit_code for o in self.outcomes.values() if o.exit_code), 0)

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {
            "recipe": self.recipe.name,
            "outputs": [o.output for o in self.outcomes.values() if o.output is not None],
            "lock": self.lock,
            "tasks": {name: outcome.json() for name, outcome in self.outcomes.items()},
        }

    def columns(self) -> list[str]:
        """Return the columns of the table: the sweep's variables, then every figure of every step."""
        names = list(dict.fromkeys(name for case in self.recipe.cases for name in case))
        figures = [
            f"{o.task.step}.{name}"
            for o in self.outcomes.values()
            for name in ("status", "output", *o.figures)
        ]
        return list(dict.fromkeys([*names, *figures]))

    def rows(self) -> Iterator[list[Scalar]]:
        """Yield a row for each case of the sweep, one if there is none."""
        columns = self.columns()
        for case in self.recipe.cases:
            row: dict[str, Scalar] = {name: as_text(value) for name, value in case.items()}
            for outcome in self.outcomes.values():
                if project(case, list(outcome.task.case)) == dict(outcome.task.case):
                    step = outcome.task.step
                    row |= {f"{step}.{name}": value for name, value in outcome.figures.items()}
                    row[f"{step}.status"] = outcome.status
                    row[f"{step}.output"] = outcome.output
            yield [row.get(column) for column in columns]


def figures_of(result: Any) -> dict[str, Scalar]:
    """Return the numbers and words of a result's JSON, nested ones under joined names."""
    content = result.json()
    if isinstance(content, list):
        whole: dict[str, Scalar] = {"files": len(content)}
        return whole | (dict(_scalars(content[0])) if len(content) == 1 else {})
    return dict(_scalars(content))


_APART = ("output", "outputs", "metadata", "facts", "touched", "blocks", "table", "case")


def _scalars(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if key in _APART:
            continue
        if isinstance(value, (str, int, float, bool)):
            yield name, value
        elif isinstance(value, Mapping) and len(value) <= 16:
            yield from _scalars(value, f"{name}.")
