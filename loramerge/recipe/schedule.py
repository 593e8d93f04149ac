"""The order of a run: tasks that are ready, tasks that need not run, and their outcomes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

from loramerge.adapter import Adapter
from loramerge.errors import LoramergeError
from loramerge.events import Event, Finished, Progress, ignore
from loramerge.recipe.recipe import Recipe
from loramerge.recipe.results import Done, Outcome, figures_of
from loramerge.recipe.state import Fact, Record, State, file_fact, task_key
from loramerge.recipe.task import Task
from loramerge.steps.parameters import Context

__all__ = ["Schedule"]

Perform = Callable[..., Done]  # of a task, what its names stand for, and the context


class _Stopped(BaseException):
    """Raised inside tasks of other threads to end them after an interruption."""


class Schedule:
    """One run of a recipe, with the tasks that are done, wanted and running.

    Args:
        perform: runs one task; called here, or by the executor in another thread or process.
        executor: runs the tasks, at most `jobs` at a time if that is more than 1; None runs them here.
        fresh: run tasks that are up to date, too.
        keep_going: after a failure, run the tasks that do not need the one that failed.
    """

    def __init__(
        self,
        recipe: Recipe,
        context: Context,
        state: State,
        perform: Perform,
        executor: Executor | None,
        jobs: int,
        fresh: bool,
        keep_going: bool,
    ) -> None:
        self.recipe, self.tasks, self.state = recipe, recipe.tasks, state
        self.perform, self.executor, self.fresh, self.keep_going = (
            perform, executor, fresh, keep_going,
        )  # fmt: skip
        self.outcomes: dict[str, Outcome] = {}
        self.in_process = executor is None or isinstance(executor, ThreadPoolExecutor)
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

    def run(self) -> dict[str, Outcome]:
        """Run every task that lasts and is not up to date, and those it needs; return all outcomes.

        Raises:
            LoramergeError: of the first task that failed, unless the run keeps going.
        """
        try:
            self._report()
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
        return {
            name: self.outcomes.get(name) or Outcome(task, "not needed")
            for name, task in self.tasks.items()
        }

    def _keep_finished(self) -> None:
        """Record the tasks that succeeded while others were stopped, so that they need not run
        again."""
        for future, task in self.running.items():
            if not future.cancelled() and future.exception() is None:
                self._take(task, future)

    def _decide(self) -> None:
        """Decide for every task that lasts whether it must be run, as soon as that is known."""
        decidable: dict[str, bool] = {}  # whether all saved results that a task depends on exist
        for name, task in self.tasks.items():  # each after those it needs
            decidable[name] = all(
                (n in self.facts) if self.tasks[n].lasts else decidable[n] for n in task.needs
            )
            if name in self.decided or not task.lasts or not decidable[name]:
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
        """Mark a task, and those whose unsaved results it takes, as wanted."""
        stack = [task]
        while stack:
            one = stack.pop()
            if one.name not in self.wanted:
                self.wanted.add(one.name)
                stack += [self.tasks[n] for n in one.needs if not self.tasks[n].lasts]

    def _is_current(self, task: Task) -> bool:
        record = self.state.records.get(task.name)
        return record is not None and self.state.is_current(task, self._key(task))

    def _key(self, task: Task) -> str:
        stack = [task]  # no recursion: a recipe may be a thousand steps deep
        while stack:
            one = stack[-1]
            unsaved = [self.tasks[n] for n in one.needs if not self.tasks[n].lasts]
            waiting = [needed for needed in unsaved if needed.name not in self.keys]
            if waiting:
                stack += waiting
                continue
            stack.pop()
            if one.name not in self.keys:
                facts: dict[str, Fact] = {n: self._fact(path) for n, path in one.files.items()}
                facts |= {n: self.facts[n] for n in one.needs if self.tasks[n].lasts}
                facts |= {needed.name: {"task": self.keys[needed.name]} for needed in unsaved}
                self.keys[one.name] = task_key(one, facts, strip=self.context.strip)
        return self.keys[task.name]

    def _fact(self, path: Path) -> Fact:
        if path not in self._files:
            self._files[path] = file_fact(path)
        return self._files[path]

    def _ready(self) -> list[Task]:
        """Return the wanted tasks whose inputs are there, those nearest to an output first.

        This order uses up the results of one case before it makes those of the next.
        """
        under_way = {task.name for task in self.running.values()}
        ready = [
            self.tasks[name]
            for name in self.wanted
            if name not in self.outcomes
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

    def _context_of(self, task: Task) -> Context:
        if not self.in_process:
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
        self._settle(
            task,
            lambda: self.perform(task, self._known(task), self._context_of(task), in_process=True),
        )

    def _submit(self, task: Task) -> None:
        assert self.executor is not None
        self.state.begin(task)
        known = self._known(task)
        sent = task
        if not self.in_process:  # the folder that paths start from may be another one there
            known = {n: v.absolute() if isinstance(v, Path) else v for n, v in known.items()}
            sent = replace(task, save=task.save and task.save.absolute(), files={})
        future = self.executor.submit(
            self.perform, sent, known, self._context_of(task), in_process=self.in_process
        )
        self.running[future] = task

    def _take(self, task: Task, future: Future[Done]) -> None:
        self._settle(task, future.result)

    def _settle(self, task: Task, get: Callable[[], Done]) -> None:
        """Record the result of a task, or its failure.

        Raises:
            LoramergeError: of the task, unless the run keeps going.
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
        self.outcomes[task.name] = outcome
        if task.lasts:
            name = "" if task.save is None else task.save.name
            self.facts[task.name] = {"name": name, "sha256": sha256 or ""}
        self._forget(task)
        self._tell(outcome)
        self._report()

    def _forget(self, task: Task) -> None:
        """Free the results in memory that no other task needs."""
        for name in task.needs:
            if all(user in self.outcomes for user in self.users[name]):
                self.adapters.pop(name, None)

    def _fail(self, task: Task, error: LoramergeError) -> None:
        """Record a failure, and leave out the tasks that need the one that failed."""
        stack = [task]
        while stack:
            one = stack.pop()
            if one.name not in self.outcomes:
                first = one is task
                self.decided.add(one.name)
                outcome = self.outcomes[one.name] = Outcome(
                    one,
                    "failed" if first else "left out",
                    error=str(error) if first else f"{task.name} failed",
                    exit_code=error.exit_code if first else 0,
                )
                self._tell(outcome)
                stack += [self.tasks[user] for user in self.users[one.name]]
        self._forget(task)
        self._report()

    def _tell(self, outcome: Outcome) -> None:
        self.context.notify(Finished(outcome.task.name, outcome))

    def _report(self) -> None:
        total = sum(task.lasts for task in self.tasks.values())
        done = sum(o.task.lasts for o in self.outcomes.values())
        self.context.notify(Progress(self.recipe.name, done, total, "tasks"))


def _levels(tasks: Mapping[str, Task]) -> dict[str, int]:
    """Return, for each task, the length of the longest chain of tasks that ends with it."""
    found: dict[str, int] = {}
    for name, task in tasks.items():
        found[name] = 1 + max((found[n] for n in task.needs), default=0)
    return found
