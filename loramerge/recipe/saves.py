"""The files that steps save to: their paths and their conflicts."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from loramerge.dialects import DIALECTS
from loramerge.errors import LoramergeError
from loramerge.library.paths import below
from loramerge.recipe.mistakes import Mistakes
from loramerge.recipe.step import Step
from loramerge.recipe.task import Task
from loramerge.report.views import has_report
from loramerge.steps.outputs import adapter_output

__all__ = ["WRITTEN", "check_outputs", "check_uses", "is_outside", "outside_places", "save_path"]

WRITTEN = ("folder", "cache")  # parameters of verbs that name folders to write to

_SUFFIXES = {
    "picture": (".png", "a PNG image"),
    "document": (".md", "a Markdown file"),
    "report": (".json", "a JSON file"),
}


_VIEWS = (".html", ".png", ".svg", ".pdf")  # of reports: a page, and plots


def save_path(
    step: Step, save: Any, dialect: str | None, root: Path, mistakes: Mistakes
) -> Path | None:
    """Return the path of a `save` value, None where there is none or it is not a path.

    Args:
        dialect: name of the one to write, if the step states it; a name that files of it cannot have
            is noted.
        root: folder that relative paths start from.
    """
    if save is None:
        return None
    place = (*step.place, "save", "=")
    if not isinstance(save, str) or not save.strip():
        mistakes.add(place, f"save takes the name of a file, found {save!r}")
        return None
    path = below(root, save)
    suffix, sort = _SUFFIXES.get(step.verb.gives, ("", ""))
    views = _VIEWS if step.verb.gives == "report" and has_report(step.verb.name) else ()
    if suffix and path.suffix.lower() not in (suffix, *views):
        hint = f"save: {Path(save).with_suffix(suffix).as_posix()}"
        mistakes.add(place, f"{step.verb.name} writes {sort}, whose name ends in {suffix}", hint)
    if dialect is not None and dialect in DIALECTS:
        try:
            adapter_output(path, DIALECTS[dialect], force=True)
        except LoramergeError as error:
            mistakes.add(place, error.problem)
    return path


def check_uses(steps: Mapping[str, Step], used: Collection[str], mistakes: Mistakes) -> None:
    """Note steps whose results are neither used nor saved.

    Args:
        used: names of the steps that others refer to.
    """
    for name, step in steps.items():
        if step.save is None and step.verb.gives == "adapter" and name not in used:
            problem = f"nothing uses the step {name!r}, and it is not saved"
            mistakes.add(step.place, problem, "add save: FILE")


def check_outputs(tasks: Mapping[str, Task], mistakes: Mistakes) -> None:
    """Note outputs that would replace another output, or an input."""
    taken: dict[str, Task] = {}
    inputs = {os.path.realpath(p): n for t in tasks.values() for n, p in t.files.items()}
    for task in tasks.values():
        if task.save is None:
            continue
        place = ("steps", task.step, "save", "=")
        real = os.path.realpath(task.save)
        other = taken.setdefault(real, task)
        if other is not task and other.step == task.step:
            names = ", ".join(f"${{{name}}}" for name in task.case)
            problem = f"all cases of {task.step!r} save to the same file"
            mistakes.add(place, problem, f"use its variables in the name: {names}")
        elif other is not task:
            mistakes.add(place, f"{task.step!r} and {other.step!r} save to the same file")
        if real in inputs:
            mistakes.add(place, f"this would replace {inputs[real]!r}, which the recipe reads")


def outside_places(folder: Path, tasks: Mapping[str, Task]) -> list[str]:
    """Return the places outside of a folder that tasks write to, links followed."""
    found: dict[str, None] = {}
    for task in tasks.values():
        named = (getattr(task.parameters, word, None) for word in WRITTEN)
        for place in (task.save, *named):
            if isinstance(place, (str, Path)) and is_outside(folder, Path(place)):
                found[str(place)] = None
    return list(found)


def is_outside(folder: Path, place: Path) -> bool:
    """Return whether a place lies outside of a folder, links followed."""
    root = os.path.realpath(folder)
    try:
        return os.path.commonpath([root, os.path.realpath(place)]) != root
    except ValueError:  # another drive
        return True
