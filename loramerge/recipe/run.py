"""Run the tasks of a recipe, skipping those that are up to date.

A task with `save` is a barrier: those that use it read its file. Others hand their result on in memory,
unrounded. A task is up to date if its inputs' digests, its parameters and the code are the same as
when its output was made, and the output has not changed since.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from loramerge.adapter import Adapter
from loramerge.algebra.workers import available_cpus
from loramerge.errors import LoramergeError, OutputExists, Setting, UsageError, listed
from loramerge.events import Event, Notify, ignore
from loramerge.recipe.executors import pool
from loramerge.recipe.lock import check_lock, write_lock
from loramerge.recipe.plan import states_of
from loramerge.recipe.recipe import Recipe, Source, open_recipe
from loramerge.recipe.results import Done, RunResult
from loramerge.recipe.saves import outside_places
from loramerge.recipe.schedule import Schedule
from loramerge.recipe.state import State
from loramerge.recipe.task import Task
from loramerge.recipe.words import spelling_events, with_recipe_words
from loramerge.steps import engine
from loramerge.steps.parameters import Context

__all__ = ["RunResult", "run", "run_recipe"]


def run(
    recipe: Source,
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
    allow_import: bool = False,
    allow_outside: bool = False,
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
        fresh: run tasks that are up to date, too.
        force: replace outputs that the recipe did not make.
        lock: write the digests of all inputs beside the recipe, instead of checking them.
        keep_going: after a failure, run the tasks that do not need the one that failed.
        strip: write no recipe into the outputs' headers.
        allow_import: import optimizers by paths outside the known packages, which runs their code.
        allow_outside: let a recipe in a file write outside of its folder.
        threads, device: of each task.

    Raises:
        RecipeError: with all mistakes in it, before anything is done.
        LoramergeError: of the first task that failed, unless `keep_going`.
    """
    return run_recipe(
        open_recipe(recipe, set=set, inputs=inputs),
        Context(threads, device, notify, strip, allow_import=allow_import),
        jobs=jobs,
        executor=executor,
        fresh=fresh,
        force=force,
        lock=lock,
        keep_going=keep_going,
        allow_outside=allow_outside,
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
    allow_outside: bool = False,
) -> RunResult:
    """Run a checked recipe, as `run` does."""
    if jobs > 1 and context.threads is None:
        share = max(1, available_cpus() // jobs)
        context = replace(context, threads=share, model_threads=context.torch_threads)
    result = RunResult(recipe)
    if lock:
        result.lock = str(write_lock(recipe))
    else:
        check_lock(recipe)
    state = State.beside(recipe.path, recipe.root)
    _check_places(recipe, allowed=allow_outside)
    if force:
        state.trusted = True
    else:
        _check_outputs(recipe, state, context, fresh=fresh)
    place: AbstractContextManager[Executor | None] = (
        pool(jobs) if executor is None else nullcontext(executor)
    )
    with place as where:
        schedule = Schedule(recipe, context, state, perform, where, jobs, fresh, keep_going)
        result.outcomes = schedule.run()
    return result


def _check_places(recipe: Recipe, *, allowed: bool) -> None:
    """Refuse a recipe in a file that writes outside of its folder, because it may come from anyone.

    Raises:
        UsageError: naming the places.
    """
    outside = [] if allowed or recipe.path is None else outside_places(recipe.root, recipe.tasks)
    if outside:
        raise UsageError(
            "the recipe writes outside of its folder",
            file=recipe.path,
            found=listed(outside, 4),
            hint=("if that is meant, give ", Setting("allow_outside", True)),
        )


def _check_outputs(recipe: Recipe, state: State, context: Context, *, fresh: bool) -> None:
    """Refuse to replace files that the recipe did not make here, before any work.

    Raises:
        OutputExists: naming them.
    """
    there = {
        name: task.save
        for name, task in recipe.tasks.items()
        if task.save is not None and task.save.exists() and not state.owns(task.save)
    }
    if there and not state.trusted:  # what is up to date stays, whoever made it
        states = states_of(recipe, state, context, fresh)
        there = {name: save for name, save in there.items() if states[name] != "up to date"}
    foreign = [str(save) for save in there.values()]
    if foreign:
        raise OutputExists(
            "the output exists, and this recipe did not make it or it was changed since",
            file=listed(foreign, 4),
            hint=("to replace it, give ", Setting("force", True)),
        )


def perform(
    task: Task, known: Mapping[str, Adapter | Path], context: Context, *, in_process: bool
) -> Done:
    """Run one task.

    Args:
        known: name in the parameters → the adapter or file that it stands for.
        in_process: whether `context.notify` can be called from here; otherwise events are kept.
    """
    start = time.perf_counter()
    events: list[Event] = []
    notify = context.notify if in_process else events.append
    context = replace(context, known=known, notify=spelling_events(notify, task.verb))
    save = False if task.save is None else task.save
    try:
        result = engine.perform(task.verb, task.parameters, context, save=save, step=task.name)
    except LoramergeError as error:
        raise with_recipe_words(error, task.verb) from error.__cause__
    adapter = None
    if task.verb.gives == "adapter":
        adapter, result.adapter = result.adapter, None
    kept = adapter if task.save is None else None
    return Done(result, kept, time.perf_counter() - start, events)
