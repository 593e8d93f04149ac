"""Expansion of steps to tasks: each step in every case of the sweep that it depends on.

A step depends on the variables that it uses itself, and on those of the steps it refers to. `each`
ends this dependence: a step that collects all cases of another runs once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loramerge.errors import LoramergeError, suggestion
from loramerge.library.paths import below
from loramerge.parameters import Parameter, parameters_of, value_of
from loramerge.recipe.graph import find_cycle, ordered, reachable
from loramerge.recipe.inputs import Input
from loramerge.recipe.mistakes import Mistakes, Place
from loramerge.recipe.names import Names
from loramerge.recipe.saves import check_outputs, check_uses, save_path
from loramerge.recipe.schema import Each, validate
from loramerge.recipe.step import Step
from loramerge.recipe.task import Task
from loramerge.recipe.variables import Case, case_label, project, substitute, variables_in
from loramerge.steps.references import Reference
from loramerge.steps.writing import WriteParameters

__all__ = ["expand"]


@dataclass(frozen=True)
class _Variant:
    """A step's parameters for one set of values of the variables that it uses itself."""

    case: Case
    parameters: Any


def expand(
    steps: Mapping[str, Step],
    cases: Sequence[Case],
    variables: Mapping[str, Any],
    inputs: Mapping[str, Input],
    root: Path,
    mistakes: Mistakes,
) -> dict[str, Task]:
    """Return the tasks of a recipe by name, each after those it needs.

    Args:
        cases: of the sweep; one empty case where there is none.
        variables: those of `vars`.
        root: folder that relative paths start from.
        mistakes: collects mistakes; the rest is expanded all the same.
    """
    return _Expansion(steps, cases, variables, inputs, root, mistakes).tasks()


class _Expansion:
    """The steps of one recipe, and the cases that they are expanded to."""

    def __init__(
        self,
        steps: Mapping[str, Step],
        cases: Sequence[Case],
        variables: Mapping[str, Any],
        inputs: Mapping[str, Input],
        root: Path,
        mistakes: Mistakes,
    ) -> None:
        self.steps, self.cases, self.variables = steps, cases, variables
        self.root, self.mistakes = root, mistakes
        self.names = Names(steps, inputs, root, mistakes)
        self.swept = list(dict.fromkeys(name for case in cases for name in case))
        self.variants = {name: self._variants(step) for name, step in steps.items()}
        self.depends = self._dependence()

    def tasks(self) -> dict[str, Task]:
        """Return all tasks, each after those it needs."""
        needs = {name: list(self._uses(name)) for name in self.steps}
        used = {name for names in needs.values() for name in names}
        self._cut_cycles(needs)
        tasks: dict[str, Task] = {}
        for name in ordered(needs):
            for case in _distinct(self.cases, self.depends[name]):
                task = self._task(self.steps[name], case)
                if task is not None:
                    tasks[task.name] = task
        check_uses(self.steps, used, self.mistakes)
        check_outputs(tasks, self.mistakes)
        return tasks

    # --- steps ------------------------------------------------------------------------------------

    def _variants(self, step: Step) -> list[_Variant]:
        """Return the step's parameters in every case that differs in its own variables."""
        own = [name for name in self.swept if name in step.variables]
        place = (*step.place, step.verb.name)
        found = []
        for case in _distinct(self.cases, own):
            before = self.mistakes.noted
            content = substitute(step.content, place, {**self.variables, **case}, self.mistakes)
            parameters = validate(step.verb, content, place, self.root, self.mistakes)
            if parameters is not None:
                if self.mistakes.noted == before:
                    self._check(step, parameters, place)
                found.append(_Variant(case, parameters))
        return found

    def _check(self, step: Step, parameters: Any, place: Place) -> None:
        """Note parameters that the verb refuses, and file options of steps that write no file."""
        try:
            if callable(check := getattr(parameters, "check", None)):
                check()
        except LoramergeError as error:
            self.mistakes.caught(place, error)
        writes = isinstance(parameters, WriteParameters) and parameters.says_how
        if writes and step.save is None and getattr(parameters, "max_size", None) is None:
            problem = "to, for and dtype apply to files, and this step does not write one"
            self.mistakes.add(place, problem, "add save: FILE, or leave them out")

    def _uses(self, name: str, *, gathered: bool = True) -> dict[str, None]:
        """Return the steps that a step refers to, in order.

        Args:
            gathered: those under `each`, too.
        """
        return {
            reference.name: None
            for variant in self.variants[name]
            for reference in _references(variant.parameters)
            if reference.name in self.steps and (gathered or not isinstance(reference, Each))
        }

    def _dependence(self) -> dict[str, list[str]]:
        """Return step → variables of the sweep that its result depends on."""
        direct = {name: step.variables for name, step in self.steps.items()}
        through = {name: self._uses(name, gathered=False) for name in self.steps}
        return {
            name: [v for v in self.swept if any(v in direct[n] for n in reachable([name], through))]
            for name in self.steps
        }

    def _cut_cycles(self, needs: dict[str, list[str]]) -> None:
        """Note cycles, and drop the dependences of their steps, so that the rest can be checked."""
        while (cycle := find_cycle(needs)) is not None:
            ring = " → ".join([*cycle, cycle[0]])
            self.mistakes.add(self.steps[cycle[0]].place, f"steps need each other: {ring}")
            for name in cycle:
                needs[name] = [n for n in needs[name] if n not in cycle]

    # --- tasks ------------------------------------------------------------------------------------

    def _task(self, step: Step, case: Case) -> Task | None:
        """Return a step in one case, its names resolved; None where its parameters are mistaken."""
        parameters = next(
            (v.parameters for v in self.variants[step.name]
             if project(case, list(v.case)) == v.case),
            None,
        )  # fmt: skip
        if parameters is None:
            return None
        needs: dict[str, None] = {}
        files: dict[str, Path] = {}
        changed: dict[str, Any] = {}
        for one in parameters_of(type(parameters)):
            value = value_of(parameters, one)
            values = value if one.many else (value,)
            if one.doc.recipe and one.doc.path:
                placed = [v if v is None else str(below(self.root, v)) for v in values]
                changed[one.name] = tuple(placed) if one.many else placed[0]
            if not one.doc.recipe or not any(map(one.names, values)):
                continue
            found: list[Reference] = []
            for reference in map(_as_reference, values):
                for target in self._targets(step, one, reference, case):
                    found.append(_named(reference, target.name))
                    if target.path is None:
                        needs[target.name] = None
                    else:
                        files[target.name] = target.path
            plain = [r if one.kind is Reference else r.name for r in found]
            changed[one.name] = tuple(plain) if one.many else next(iter(plain), value)
        return Task(
            step.name + case_label(case), step.name, case, step.verb, replace(parameters, **changed),
            self._save(step, case, getattr(parameters, "to", None)), tuple(needs), files,
        )  # fmt: skip

    def _targets(
        self, step: Step, one: Parameter, reference: Reference, case: Case
    ) -> Iterator[_Target]:
        """Yield the targets of a reference: tasks of a step, or files."""
        name = reference.name
        if name in self.steps:
            self.names.check_step(step, one, name)
            yield from (_Target(task) for task in self._instances(reference, case))
        elif isinstance(reference, Each):
            hint = suggestion(name, self.steps)
            self.mistakes.add(step.at(one), f"there is no step {name!r}", hint)
        else:
            yield from (_Target(*found) for found in self.names.files(step, one, reference))

    def _instances(self, reference: Reference, case: Case) -> list[str]:
        """Return the tasks that a reference to a step means: its own case's, or all that agree."""
        name, theirs = reference.name, self.depends[reference.name]
        if not isinstance(reference, Each):
            return [name + case_label(project(case, theirs))]
        agreeing = [c for c in self.cases if all(c[n] == value for n, value in case.items())]
        return [name + case_label(c) for c in _distinct(agreeing, theirs)]

    def _save(self, step: Step, case: Case, dialect: str | None) -> Path | None:
        variables = {**self.variables, **case}
        save = substitute(step.save, (*step.place, "save"), variables, self.mistakes)
        if any(name not in variables for name in variables_in(step.save)):
            return None
        return save_path(step, save, dialect, self.root, self.mistakes)


@dataclass(frozen=True)
class _Target:
    """A task, or a file with the name that parameters have for it."""

    name: str
    path: Path | None = None


def _distinct(cases: Sequence[Case], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the cases that differ in some variables, each once."""
    found: dict[str, dict[str, Any]] = {}
    for case in cases:
        part = project(case, names)
        found.setdefault(repr(part), part)
    return list(found.values())


def _references(parameters: Any) -> Iterator[Reference]:
    """Yield every reference of a step's parameters."""
    for one in parameters_of(type(parameters)):
        value = value_of(parameters, one)
        if one.doc.recipe:
            for part in value if one.many else (value,):
                if one.names(part):
                    yield _as_reference(part)


def _named(reference: Reference, name: str) -> Reference:
    """Return a reference to one thing of another name."""
    return replace(reference, name=name)


def _as_reference(value: Any) -> Reference:
    return value if isinstance(value, Reference) else Reference(str(value))
