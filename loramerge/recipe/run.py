"""Running a recipe: what is needed, in an order that keeps few results in memory, and what is there not
again.

A task with `save` is a barrier: those that use it read its file. Others hand their result on in memory,
unrounded. What exists is told by content: a task is up to date if its inputs' digests, its parameters
and the code are those of the time when its output was made, and the output is still that.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loramerge.adapter import Adapter
from loramerge.algebra.workers import available_cpus
from loramerge.errors import LoramergeError, OutputExists, listed
from loramerge.events import Event, Notify, Progress, ignore
from loramerge.recipe.executors import pool
from loramerge.recipe.lock import check_lock, write_lock
from loramerge.recipe.recipe import Recipe, Task, load_recipe, recipe_of
from loramerge.recipe.results import Outcome, RunResult, figures_of
from loramerge.recipe.state import Fact, Record, State, file_fact, task_key
from loramerge.steps import engine
from loramerge.steps.parameters import Context

__all__ = ["RunResult", "run", "run_recipe"]


def run(
    recipe: str | os.PathLike[str] | Mapping[str, Any],
    *,
    set: Mapping[str, Any] | None = None,  # the word of the command line
    inputs: Mapping[str, str] | None = None,
    jobs: int = 1,
    executor: Executor | None = None,
    fresh: bool = False,
    force: bool = False,
    lock: bool = False,
    keep_going: bool = False,
    strip: bool = False,
    threads: int | None = None,
    device: str | None = None,
    notify: Notify = ignore,
) -> RunResult:
    """Run a recipe.

    Args:
        recipe: a YAML file, or the content of one; relative paths start from its folder, or from the
            current one.
        set: variable → value, instead of the recipe's.
        inputs: input → path, instead of the recipe's.
        jobs: tasks at a time.
        executor: runs the tasks instead, at most `jobs` at a time if that is more than 1; tasks and
            results can be pickled.
        fresh: make again what is up to date.
        force: replace outputs that the recipe did not make.
        lock: write the digests of all inputs beside the recipe, instead of checking them.
        keep_going: after a failure, go on with what does not need it.
        strip: write nothing into the outputs' headers about what made them.
        threads, device: of each task.

    Raises:
        RecipeError: with all mistakes in it, before anything is done.
        LoramergeError: of the first task that failed, unless `keep_going`.
    """
    if isinstance(recipe, Mapping):
        found = recipe_of(recipe, Path(), set=set, inputs=inputs)
    else:
        found = load_recipe(recipe, set=set, inputs=inputs)
    context = Context(threads, device, notify, strip)
    return run_recipe(
        found,
        context,
        jobs=jobs,
        executor=executor,
        fresh=fresh,
        force=force,
        lock=lock,
        keep_going=keep_going,
    )


def run_recipe(
    recipe: Recipe,
    context: Context,
    *,
    jobs: int = 1,
    executor: Executor | None = None,
    fresh: bool = False,
    force: bool = False,
    lock: bool = False,
    keep_going: bool = False,
) -> RunResult:
    """Run a checked recipe; see `run`."""
    if jobs > 1 and context.threads is None:
        context = replace(context, threads=max(1, available_cpus() // jobs))
    result = RunResult(recipe)
    if lock:
        result.lock = str(write_lock(recipe))
    else:
        check_lock(recipe)
    state = State.beside(recipe.path, recipe.root)
    _check_outputs(recipe, state, force=force)
    place: AbstractContextManager[Executor | None] = (
        pool(jobs) if executor is None else nullcontext(executor)
    )
    with place as where:
        _Run(recipe, context, state, where, jobs, fresh, keep_going, result).go()
    order = {name: index for index, name in enumerate(recipe.tasks)}
    result.outcomes = dict(sorted(result.outcomes.items(), key=lambda item: order[item[0]]))
    return result


def _check_outputs(recipe: Recipe, state: State, *, force: bool) -> None:
    """Refuse to replace what the recipe did not make, before any work.

    Raises:
        OutputExists: naming it.
    """
    if force:
        return
    strange = [
        str(task.save)
        for task in recipe.tasks.values()
        if task.save is not None and task.save.exists() and not state.owns(task.save)
    ]
    if strange:
        raise OutputExists(
            "an output exists that this recipe did not make, or that was changed since",
            file=listed(strange, 4),
            hint="--force replaces it",
        )


@dataclass
class Done:
    """What running a task gave; can be pickled.

    Args:
        adapter: the result of a task that saves nothing.
        events: told to no one meanwhile.
    """

    result: Any
    adapter: Adapter | None
    seconds: float
    events: list[Event] = field(default_factory=list)


def perform(
    task: Task, known: Mapping[str, Adapter | Path], context: Context, *, told: bool
) -> Done:
    """Run one task.

    Args:
        known: name in the parameters → what stands behind it.
        told: whether `context.notify` can be called from here; if not, events are kept.
    """
    start = time.perf_counter()
    events: list[Event] = []
    notify = context.notify if told else events.append
    how = replace(context, known=known, notify=notify)
    save = False if task.save is None else task.save
    result = engine.perform(task.verb, task.parameters, how, save=save, step=task.name)
    adapter = None
    if task.verb.gives == "adapter":
        adapter, result.adapter = result.adapter, None
    kept = adapter if task.save is None else None
    return Done(result, kept, time.perf_counter() - start, events)


class _Stopped(BaseException):
    """Ends tasks in other threads after an interruption."""


class _Run:
    """The state of one run: what is done, what is needed, what is under way."""

    def __init__(
        self,
        recipe: Recipe,
        context: Context,
        state: State,
        executor: Executor | None,
        jobs: int,
        fresh: bool,
        keep_going: bool,
        result: RunResult,
    ) -> None:
        self.recipe, self.tasks, self.state = recipe, recipe.tasks, state
        self.executor, self.fresh, self.keep_going, self.result = (
            executor, fresh, keep_going, result,
        )  # fmt: skip
        self.told = executor is None or isinstance(executor, ThreadPoolExecutor)
        self.most = jobs if jobs > 1 else getattr(executor, "_max_workers", None) or 16
        self.stop = threading.Event()
        self.context = context
        self.order = {name: index for index, name in enumerate(self.tasks)}
        self.level = _levels(self.tasks)
        self.users: dict[str, set[str]] = {name: set() for name in self.tasks}
        for name, task in self.tasks.items():
            for needed in task.needs:
                self.users[needed].add(name)
        self.facts: dict[str, Fact] = {}  # of finished tasks that save
        self.keys: dict[str, str] = {}
        self.adapters: dict[str, Adapter] = {}
        self.wanted: set[str] = set()
        self.decided: set[str] = set()
        self.running: dict[Future[Done], Task] = {}
        self._files: dict[Path, Fact] = {}

    # --- the loop -----------------------------------------------------------------------------------

    def go(self) -> None:
        """Run until all that leaves something is there."""
        try:
            self._tell()
            while True:
                self._decide()
                ready = self._ready()
                if not ready and not self.running:
                    break
                if self.executor is None:
                    self._inline(ready[0])
                    continue
                for task in ready[: max(0, self.most - len(self.running))]:
                    self._submit(task)
                finished, _ = wait(self.running, return_when=FIRST_COMPLETED)
                for future in finished:
                    self._take(self.running.pop(future), future)
        except BaseException:
            self.stop.set()
            for future in self.running:
                future.cancel()
            wait([f for f in self.running if not f.cancelled()])
            self._keep_finished()
            raise
        for name, task in self.tasks.items():
            if name not in self.result.outcomes:
                self.result.outcomes[name] = Outcome(task, "not needed")

    def _keep_finished(self) -> None:
        """Record the tasks that ended well while the others were stopped: they need not run again."""
        for future, task in self.running.items():
            if not future.cancelled() and future.exception() is None:
                self._take(task, future)

    def _decide(self) -> None:
        """Decide for every task that leaves something whether it must be run, as soon as it is known."""
        for name, task in self.tasks.items():
            if name in self.decided or not task.lasts or not self._is_decidable(task):
                continue
            self.decided.add(name)
            if not self.fresh and self._is_current(task):
                record = self.state.records[name]
                output = None if task.save is None else str(task.save)
                self._finish(
                    Outcome(task, "up to date", output, figures=record.figures), record.sha256
                )
            else:
                self._want(task)

    def _want(self, task: Task) -> None:
        """Mark a task, and those it takes unsaved results of, as needed."""
        stack = [task]
        while stack:
            one = stack.pop()
            if one.name not in self.wanted:
                self.wanted.add(one.name)
                stack += [self.tasks[n] for n in one.needs if not self.tasks[n].lasts]

    def _is_decidable(self, task: Task) -> bool:
        """Say whether all saved results that a task depends on, directly or not, are there."""
        return all(
            (n in self.facts) if self.tasks[n].lasts else self._is_decidable(self.tasks[n])
            for n in task.needs
        )

    def _is_current(self, task: Task) -> bool:
        record = self.state.records.get(task.name)
        return record is not None and self.state.is_current(task, self._key(task))

    def _key(self, task: Task) -> str:
        if task.name not in self.keys:
            facts: dict[str, Fact] = {name: self._fact(path) for name, path in task.files.items()}
            for name in task.needs:
                needed = self.tasks[name]
                facts[name] = self.facts[name] if needed.lasts else {"task": self._key(needed)}
            self.keys[task.name] = task_key(task, facts, strip=self.context.strip)
        return self.keys[task.name]

    def _fact(self, path: Path) -> Fact:
        if path not in self._files:
            self._files[path] = file_fact(path)
        return self._files[path]

    def _ready(self) -> list[Task]:
        """Return the needed tasks whose inputs are there, those nearest to an output first.

        So the results of one case are used up before those of the next are made.
        """
        under_way = {task.name for task in self.running.values()}
        ready = [
            self.tasks[name]
            for name in self.wanted
            if name not in self.result.outcomes
            and name not in under_way
            and all(n in self.facts or n in self.adapters for n in self.tasks[name].needs)
        ]
        return sorted(ready, key=lambda task: (-self.level[task.name], self.order[task.name]))

    # --- one task -----------------------------------------------------------------------------------

    def _known(self, task: Task) -> dict[str, Adapter | Path]:
        known: dict[str, Adapter | Path] = dict(task.files)
        for name in task.needs:
            save = self.tasks[name].save
            known[name] = save if save is not None else self.adapters[name]
        return known

    def _how(self, task: Task) -> Context:
        if not self.told:
            return replace(self.context, notify=ignore)  # it cannot be sent to another process

        def notify(event: Event) -> None:
            if self.stop.is_set():
                raise _Stopped
            if isinstance(event, Progress):
                event = replace(event, task=f"{task.name}: {event.task}")
            self.context.notify(event)

        return replace(self.context, notify=notify)

    def _inline(self, task: Task) -> None:
        self.state.begin(task)
        self._settle(task, lambda: perform(task, self._known(task), self._how(task), told=True))

    def _submit(self, task: Task) -> None:
        assert self.executor is not None
        self.state.begin(task)
        known = self._known(task)
        sent = task
        if not self.told:  # the folder that paths start from may be another one there
            known = {n: v.absolute() if isinstance(v, Path) else v for n, v in known.items()}
            sent = replace(task, save=task.save and task.save.absolute(), files={})
        future = self.executor.submit(perform, sent, known, self._how(task), told=self.told)
        self.running[future] = task

    def _take(self, task: Task, future: Future[Done]) -> None:
        self._settle(task, future.result)

    def _settle(self, task: Task, get: Callable[[], Done]) -> None:
        """Record what a task gave, or that it failed.

        Raises:
            LoramergeError: of the task, unless the run goes on after failures.
        """
        try:
            done = get()
        except LoramergeError as error:
            self.state.abandon(task)
            if not self.keep_going:
                raise
            self._fail(task, error)
            return
        for event in done.events:
            self.context.notify(event)
        outcome = Outcome(
            task, "done", None if task.save is None else str(task.save), done.result,
            figures_of(done.result), done.seconds,
        )  # fmt: skip
        if done.adapter is not None:
            self.adapters[task.name] = done.adapter
        sha256 = None
        if task.lasts:
            sha256 = None if task.save is None else file_fact(task.save)["sha256"]
            output = None if task.save is None else self.state.relative(task.save)
            record = Record(self._key(task), output, sha256, outcome.figures, done.seconds)
            self.state.finish(task, record)
        self._finish(outcome, sha256)

    def _finish(self, outcome: Outcome, sha256: str | None) -> None:
        task = outcome.task
        self.result.outcomes[task.name] = outcome
        if task.lasts:
            name = "" if task.save is None else task.save.name
            self.facts[task.name] = {"name": name, "sha256": sha256 or ""}
        self._forget(task)
        self._tell()

    def _forget(self, task: Task) -> None:
        """Let go of the results in memory that nothing needs any more."""
        for name in task.needs:
            if all(user in self.result.outcomes for user in self.users[name]):
                self.adapters.pop(name, None)

    def _fail(self, task: Task, error: LoramergeError) -> None:
        """Note a failure, and that nothing which needs the task can be done."""
        stack = [task]
        while stack:
            one = stack.pop()
            if one.name not in self.result.outcomes:
                first = one is task
                self.decided.add(one.name)
                self.result.outcomes[one.name] = Outcome(
                    one,
                    "failed" if first else "left out",
                    error=str(error) if first else f"{task.name} failed",
                    exit_code=error.exit_code if first else 0,
                )
                stack += [self.tasks[user] for user in self.users[one.name]]
        self._forget(task)
        self._tell()

    def _tell(self) -> None:
        total = sum(task.lasts for task in self.tasks.values())
        done = sum(o.task.lasts for o in self.result.outcomes.values())
        self.context.notify(Progress(self.recipe.name, done, total, "tasks"))


def _levels(tasks: Mapping[str, Task]) -> dict[str, int]:
    """Return how many tasks at most stand one behind the other up to each."""
    found: dict[str, int] = {}
    for name, task in tasks.items():
        found[name] = 1 + max((found[n] for n in task.needs), default=0)
    return found
