"""The plan of a run: every task with its predicted result and whether it is up to date."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loramerge.adapter import Adapter
from loramerge.errors import LoramergeError, UsageError, in_recipe, sized, spelled
from loramerge.events import Event, Warn, ignore
from loramerge.recipe.lock import check_lock
from loramerge.recipe.recipe import Recipe, Source, open_recipe
from loramerge.recipe.state import Fact, State, file_fact, task_key
from loramerge.recipe.task import Task
from loramerge.steps.parameters import Context, Explained
from loramerge.steps.prediction import Prediction
from loramerge.steps.shown import Shown

__all__ = ["Plan", "Planned", "plan", "plan_recipe", "states_of"]


@dataclass
class Planned:
    """The prediction of a task.

    Args:
        state: `up to date`, `will run`, or `not needed`.
        prediction: None where the result cannot be predicted; `reason` says why.
        explained: how the inputs relate, where that was asked for.
        refused: exit code of the error with which the task would end, None if none is foreseen.
    """

    task: Task
    state: str
    prediction: Prediction | None
    reason: str | None = None
    explained: Explained | None = None
    refused: int | None = None

    def json(self) -> dict[str, Any]:
        """Return this task's object in `plan --json`."""
        blank = Prediction(modules=None).json() if self.prediction is None else {}
        found = dict.fromkeys(blank) if self.prediction is None else self.prediction.json()
        return {
            "step": self.task.step,
            "case": dict(self.task.case),
            "verb": self.task.verb.name,
            "needs": list(self.task.needs),
            "save": None if self.task.save is None else str(self.task.save),
            "state": self.state,
            **found,
            "reason": self.reason,
            "refused": self.refused,
            **({} if self.explained is None else {"interference": self.explained.json()}),
        }


@dataclass(repr=False)
class Plan(Shown):
    """The predictions of a run, task by task."""

    headline = ("name", "running", "seconds", "memory", "size")

    recipe: Recipe
    tasks: dict[str, Planned]

    @property
    def name(self) -> str:
        """The recipe's name."""
        return self.recipe.name

    @property
    def running(self) -> int:
        """Number of tasks that will run."""
        return len(self._running)

    @property
    def seconds(self) -> float:
        """Estimated time of all tasks that will run, one after the other."""
        return sum(p.prediction.seconds for p in self._running if p.prediction)

    @property
    def memory(self) -> int:
        """Estimated peak memory in bytes, that of the largest task."""
        found = [p.prediction.memory for p in self._running if p.prediction]
        return max(found, default=0)

    @property
    def size(self) -> int:
        """Bytes of all files that will be written."""
        saved = (p for p in self._running if p.task.save is not None and p.prediction)
        return sum(p.prediction.size or 0 for p in saved if p.prediction)

    @property
    def unknown(self) -> list[str]:
        """Names of the tasks of which it is not known how much they will write."""
        return [
            name
            for name, one in self.tasks.items()
            if one.state == "will run"
            and (one.task.save is not None or one.task.lasts)
            and (one.prediction is None or one.prediction.size is None)
        ]

    @property
    def refused(self) -> int | None:
        """Exit code of the first task that would be refused, None if none is foreseen."""
        return next((one.refused for one in self._running if one.refused is not None), None)

    @property
    def _running(self) -> list[Planned]:
        return [p for p in self.tasks.values() if p.state == "will run"]

    def table_rows(self) -> Iterator[tuple[str, ...]]:
        yield ("task", "verb", "state", "modules", "ranks", "size", "output")
        for name, one in self.tasks.items():
            found = one.prediction or Prediction(modules=None)
            ranks = ", ".join(map(str, found.ranks or ()))
            save = "" if one.task.save is None else str(one.task.save)
            size = "" if found.size is None else sized(found.size)
            modules = "" if found.modules is None else str(found.modules)
            yield (name, one.task.verb.name, one.state, modules, ranks, size, save)

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {
            "recipe": self.recipe.name,
            "seconds": round(self.seconds, 3),
            "memory": self.memory,
            "size": self.size,
            "tasks": {name: planned.json() for name, planned in self.tasks.items()},
        }


def plan(
    recipe: Source,
    *,
    set: Mapping[str, Any] | None = None,  # the word of the command line
    inputs: Mapping[str, str] | None = None,
    fresh: bool = False,
    explain: bool = False,
    strip: bool = False,
    allow_import: bool = False,
    threads: int | None = None,
    device: str | None = None,
) -> Plan:
    """Predict a run of a recipe from headers alone: ranks, sizes, memory, and what is up to date.

    Args:
        recipe: a YAML file, or the content of one; relative paths start from its folder, or from the
            current one.
        set: variable → value, instead of the recipe's.
        inputs: input → path, instead of the recipe's.
        explain: compute mixes in memory, and describe how their inputs relate.
        fresh, strip, allow_import, threads, device: as of `run`.

    Raises:
        RecipeError: with all mistakes in it.
    """
    found = open_recipe(recipe, set=set, inputs=inputs)
    context = Context(threads, device, strip=strip, allow_import=allow_import)
    return plan_recipe(found, context, fresh=fresh, explain=explain)


def plan_recipe(
    recipe: Recipe,
    context: Context = Context(),
    *,
    fresh: bool = False,
    explain: bool = False,
) -> Plan:
    """Predict a run of a checked recipe, from headers alone unless it explains.

    Args:
        fresh: the run would repeat tasks that are up to date.
        explain: compute mixes in memory, and describe how their inputs relate.

    Raises:
        RecipeError: if the recipe is locked and its files have changed.
    """
    check_lock(recipe)
    states = states_of(recipe, State.beside(recipe.path, recipe.root), context, fresh)
    known: dict[str, Adapter | Path] = {}
    recorded = State.beside(recipe.path, recipe.root).records
    planned: dict[str, Planned] = {}
    for name, task in recipe.tasks.items():
        prediction, reason, refused = _predicted(task, {**known, **task.files}, context)
        if prediction is not None:
            if prediction.adapter is not None:
                known[name] = prediction.adapter
            if name in recorded and recorded[name].seconds:
                prediction.seconds = recorded[name].seconds  # measured beats estimated
        if task.save is not None and task.save.exists() and states[name] == "up to date":
            known[name] = task.save
        planned[name] = Planned(task, states[name], prediction, reason, refused=refused)
    if explain:
        results = _Results(recipe, states, context)
        for one in planned.values():
            if one.reason is None and one.state != "not needed":
                one.explained, one.reason = results.explained(one.task)
    return Plan(recipe, planned)


class _Results:
    """Results of tasks, computed in memory when others are explained by them."""

    def __init__(self, recipe: Recipe, states: Mapping[str, str], context: Context) -> None:
        self._tasks, self._states, self._context = recipe.tasks, states, context
        self._made: dict[str, Adapter | Path] = {}

    def explained(self, task: Task) -> tuple[Explained | None, str | None]:
        """Return how the inputs of a task relate, or the reason why that is not known."""
        if task.verb.explain is None:
            return None, None
        try:
            return task.verb.explain(task.parameters, self._knowing(task)), None
        except LoramergeError as error:
            return None, error.text(in_recipe)

    def _knowing(self, task: Task) -> Context:
        known = {name: self._of(name) for name in task.needs}
        return replace(self._context, known={**known, **task.files}, notify=ignore)

    def _of(self, name: str) -> Adapter | Path:
        task = self._tasks[name]
        if name not in self._made:
            if task.save is not None and self._states[name] == "up to date":
                self._made[name] = task.save
            elif task.verb.compute is not None:
                self._made[name] = task.verb.compute(task.parameters, self._knowing(task)).adapter
            else:
                raise UsageError(f"depends on {name!r}, which has not run yet")
        return self._made[name]


def _predicted(
    task: Task, known: Mapping[str, Adapter | Path], context: Context
) -> tuple[Prediction | None, str | None, int | None]:
    """Return the prediction of a task, or the reason why there is none, and the code of its error.

    What the task would warn of is among the remarks of the prediction.
    """
    if any(name not in known for name in task.needs):
        return None, "depends on a step that has not run yet", None
    warnings: list[str] = []

    def notify(event: Event) -> None:
        if isinstance(event, Warn):
            warnings.append(spelled(event.text, in_recipe))

    try:
        if task.verb.predict is None:
            return None, None, None
        listening = replace(context, known=known, notify=notify)
        prediction = task.verb.predict(task.parameters, listening)
        prediction.remarks = list(dict.fromkeys([*prediction.remarks, *warnings]))
        return prediction, None, None
    except LoramergeError as error:
        return None, error.text(in_recipe), error.exit_code


def states_of(recipe: Recipe, state: State, context: Context, fresh: bool) -> dict[str, str]:
    """Return task → its state; a task whose inputs will be made again will run, too."""
    found: dict[str, str] = {}
    keys: dict[str, str] = {}
    for name, task in recipe.tasks.items():
        facts: dict[str, Fact] = {n: file_fact(path) for n, path in task.files.items()}
        for needed in task.needs:
            other = recipe.tasks[needed]
            if not other.lasts and needed in keys:
                facts[needed] = {"task": keys[needed]}
            elif other.save is not None and found[needed] == "up to date":
                facts[needed] = file_fact(other.save)
        if all(needed in facts for needed in task.needs):
            keys[name] = task_key(task, facts, strip=context.strip)
        current = name in keys and task.lasts and state.is_current(task, keys[name])
        found[name] = "up to date" if current and not fresh else "will run"
    needed_by: dict[str, list[str]] = {name: [] for name in recipe.tasks}
    for name, task in recipe.tasks.items():
        for needed in task.needs:
            needed_by[needed].append(name)
    for name in reversed(list(recipe.tasks)):
        used = any(found[user] == "will run" for user in needed_by[name])
        if not recipe.tasks[name].lasts and not used:
            found[name] = "not needed"
    return found
