"""From the content of a recipe to the tasks it stands for: every step in every case of a sweep.

Everything is checked before anything is done, and all mistakes are reported together.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loramerge.dialects import DIALECTS
from loramerge.errors import LoramergeError, NotFound, UsageError
from loramerge.library.lookup import below, files_of, find
from loramerge.recipe.graph import find_cycle, ordered, reachable
from loramerge.recipe.inputs import Input, read_inputs
from loramerge.recipe.mistakes import Mistakes, Place, meant
from loramerge.recipe.registry import known_verbs
from loramerge.recipe.schema import Each, validated
from loramerge.recipe.text import parse_text, read_text
from loramerge.recipe.variables import (
    case_label,
    cases_of,
    filled,
    project,
    used_in,
    variables_of,
)
from loramerge.steps.outputs import adapter_output
from loramerge.steps.parameters import Parameter, Verb, parameters_of
from loramerge.steps.references import Reference
from loramerge.steps.writing import WriteParameters

__all__ = ["Recipe", "Task", "load_recipe", "recipe_of"]

_TOP = ("version", "vars", "inputs", "sweep", "steps")
# what a name may stand for, by what the parameter names
_FITS = {
    "adapters": ("adapter",),
    "bases": ("checkpoint",),
    "files": ("adapter", "checkpoint"),
    "folders": (),
}


@dataclass(frozen=True)
class Task:
    """A step in one case: what is run.

    Args:
        name: `blend`, or `blend[w=0.5]`.
        case: the values of the variables it depends on.
        parameters: of the verb; names of steps in them are names of tasks.
        save: file to write, None where the result is handed on in memory.
        needs: tasks it takes results of.
        files: name in the parameters → file it stands for, for everything that is no task.
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
        """Whether it leaves something: a file, or a report."""
        return self.save is not None or self.verb.gives == "report"


@dataclass
class Recipe:
    """A checked recipe.

    Args:
        path: of its file, None for one that is in no file.
        root: folder that relative paths start from.
        cases: of the sweep; one empty case where there is none.
        tasks: by name, each after what it needs.
    """

    path: Path | None
    root: Path
    name: str
    inputs: dict[str, Input]
    cases: list[dict[str, Any]]
    tasks: dict[str, Task] = field(default_factory=dict)

    @property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """Task → tasks that it needs."""
        return {name: task.needs for name, task in self.tasks.items()}


def load_recipe(
    path: str | os.PathLike[str],
    *,
    set: Mapping[str, Any] | None = None,  # the word of the command line
    inputs: Mapping[str, str] | None = None,
) -> Recipe:
    """Read a recipe from a YAML file; see `recipe_of`."""
    place = Path(path)
    content, mistakes = parse_text(read_text(place), str(path))
    return recipe_of(content, place.parent, mistakes, set=set, inputs=inputs, path=place)


def recipe_of(
    content: Any,
    root: Path,
    mistakes: Mistakes | None = None,
    *,
    set: Mapping[str, Any] | None = None,
    inputs: Mapping[str, str] | None = None,
    path: Path | None = None,
) -> Recipe:
    """Check the content of a recipe and return what it stands for.

    Args:
        root: folder that relative paths start from.
        mistakes: those found when it was read.
        set: variable → value, instead of the recipe's.
        inputs: input → path, instead of the recipe's; relative paths start from the current folder.

    Raises:
        RecipeError: with all mistakes.
        UsageError: if `set` or `inputs` name nothing in the recipe.
    """
    return _Reader(root, mistakes or Mistakes("recipe", {}), path).read(
        content, set or {}, inputs or {}
    )


@dataclass
class _Said:
    """A step as the recipe says it, before its variables have values."""

    name: str
    verb: Verb
    content: Mapping[str, Any]
    save: Any
    place: Place

    @property
    def variables(self) -> set[str]:
        """Names of the variables that it uses itself."""
        return {*used_in(self.content), *used_in(self.save)}


class _Reader:
    """Collects what a recipe says, and what is wrong with it."""

    def __init__(self, root: Path, mistakes: Mistakes, path: Path | None) -> None:
        self.root, self.mistakes, self.path = root, mistakes, path
        self.steps: dict[str, _Said] = {}
        self.inputs: dict[str, Input] = {}
        self.variables: dict[str, Any] = {}
        self._found: dict[tuple[str, str], list[tuple[str, Path]]] = {}

    def read(self, content: Any, overrides: Mapping[str, Any], paths: Mapping[str, str]) -> Recipe:
        """Return the checked recipe."""
        mistakes = self.mistakes
        if not isinstance(content, Mapping):
            mistakes.add((), "a recipe maps version, inputs and steps to what they are")
            mistakes.refuse()
        for word in content:
            if word not in _TOP:
                mistakes.add((word,), f"unknown word {word!r}", meant(word, _TOP))
        self._version(content)
        _known(overrides, _variables_in(content), "--set", "variable")
        self.variables = variables_of(content.get("vars") or {}, ("vars",), overrides, mistakes)
        cases: list[dict[str, Any]] = [{}]
        if content.get("sweep") is not None:
            cases = cases_of(content["sweep"], ("sweep",), overrides, self.root, mistakes)
        for name in {n for case in cases for n in case} & self.variables.keys():
            mistakes.add(("sweep",), f"{name!r} is a variable of vars, too")
        said = content.get("inputs") or {}
        _known(paths, said if isinstance(said, Mapping) else (), "--input", "input")
        self.inputs = read_inputs(said, self.root, self.variables, paths, mistakes)
        self._read_steps(content.get("steps"))
        tasks = self._tasks(cases) if self.steps else {}
        mistakes.refuse()
        return Recipe(self.path, self.root, mistakes.name, self.inputs, cases, tasks)

    def _version(self, content: Mapping[str, Any]) -> None:
        if "version" not in content:
            self.mistakes.add((), "the recipe has no version", "begin it with version: 1")
        elif content["version"] != 1 or isinstance(content["version"], bool):
            self.mistakes.add(
                ("version", "="), f"version {content['version']!r} is not known; this is version 1"
            )

    def _read_steps(self, content: Any) -> None:
        if not isinstance(content, Mapping) or not content:
            self.mistakes.add(("steps",), "a recipe has steps, a mapping of names to what is done")
            return
        for name, step in content.items():
            place: Place = ("steps", name)
            if not name.strip() or any(c in name for c in ":/\\[]{}"):
                self.mistakes.add(place, f"{name!r} cannot be the name of a step")
            if name in self.inputs:
                self.mistakes.add(place, f"{name!r} is the name of an input, too")
            found = self._read_step(name, step, place)
            if found is not None:
                self.steps[name] = found

    def _read_step(self, name: str, step: Any, place: Place) -> _Said | None:
        verbs = known_verbs()
        if not isinstance(step, Mapping):
            self.mistakes.add(place, f"a step maps one of {', '.join(verbs)} to what it takes")
            return None
        words = [word for word in step if word != "save"]
        for word in words:
            if word not in verbs:
                hint = meant(word, (*verbs, "save")) or f"there are {', '.join(verbs)}"
                self.mistakes.add(
                    (*place, word), f"there is no {word!r} that a step could do", hint
                )
        known = [word for word in words if word in verbs]
        if len(known) != 1:
            if len(known) > 1 or not words:
                problem = f"a step does one thing, and {name!r} does {len(known)}"
                self.mistakes.add(place, problem, f"one of {', '.join(verbs)}")
            return None
        verb, content = verbs[known[0]], step[known[0]]
        if not isinstance(content, Mapping):
            self.mistakes.add(
                (*place, verb.name), f"{verb.name} takes a mapping of words to values"
            )
            return None
        if verb.gives in ("checkpoint", "picture") and step.get("save") is None:
            problem = f"{verb.name} writes a {verb.gives}, and the step says no file"
            self.mistakes.add(place, problem, "save: FILE")
        return _Said(name, verb, content, step.get("save"), place)

    # --- cases ------------------------------------------------------------------------------------

    def _tasks(self, cases: Sequence[Mapping[str, Any]]) -> dict[str, Task]:
        """Return every step in every case it differs in, in order."""
        swept = list(dict.fromkeys(name for case in cases for name in case))
        asked = {name: self._asked(step, swept, cases) for name, step in self.steps.items()}
        needs = {
            name: list(dict.fromkeys(r.name for _, p in found for _, r in _references(p)
                                     if r.name in self.steps))
            for name, found in asked.items()
        }  # fmt: skip
        used = {name for names in needs.values() for name in names}
        self._cut_cycles(needs)
        depends = self._depends(asked, swept)
        tasks: dict[str, Task] = {}
        for name in ordered(needs):
            for case in _distinct(cases, depends[name]):
                task = self._task(self.steps[name], case, asked[name], depends, cases)
                if task is not None:
                    tasks[task.name] = task
        self._check_uses(used)
        self._check_outputs(tasks)
        return tasks

    def _cut_cycles(self, needs: dict[str, list[str]]) -> None:
        """Note cycles, and forget what their steps need, so that the rest can be looked at."""
        while (cycle := find_cycle(needs)) is not None:
            ring = " → ".join([*cycle, cycle[0]])
            self.mistakes.add(self.steps[cycle[0]].place, f"steps that need each other: {ring}")
            for name in cycle:
                needs[name] = [n for n in needs[name] if n not in cycle]

    def _asked(
        self, step: _Said, swept: Sequence[str], cases: Sequence[Mapping[str, Any]]
    ) -> list[tuple[dict[str, Any], Any]]:
        """Return (values of the variables the step uses itself, its parameters) for each such case."""
        own = [name for name in swept if name in step.variables]
        found = []
        for case in _distinct(cases, own):
            place = (*step.place, step.verb.name)
            before = self.mistakes.noted
            content = filled(step.content, place, {**self.variables, **case}, self.mistakes)
            parameters = validated(step.verb, content, place, self.root, self.mistakes)
            if parameters is not None:
                if self.mistakes.noted == before:
                    self._check(step, parameters, place)
                found.append((case, parameters))
        return found

    def _check(self, step: _Said, parameters: Any, place: Place) -> None:
        """Note what a verb itself finds wrong with its parameters."""
        try:
            if callable(check := getattr(parameters, "check", None)):
                check()
        except LoramergeError as error:
            self.mistakes.caught(place, error)
        writes = isinstance(parameters, WriteParameters) and parameters.says_how
        if writes and step.save is None and getattr(parameters, "max_size", None) is None:
            self.mistakes.add(
                place,
                "to, for and dtype say how a file is written, and this step writes none",
                "give the step a save: FILE, or leave them out",
            )

    def _depends(
        self, asked: Mapping[str, Sequence[tuple[Any, Any]]], swept: Sequence[str]
    ) -> dict[str, list[str]]:
        """Return step → variables of the sweep that its result depends on."""
        direct = {
            name: [v for v in swept if v in step.variables] for name, step in self.steps.items()
        }
        through = {
            name: {r.name for _, p in found for _, r in _references(p)
                   if r.name in self.steps and not isinstance(r, Each)}
            for name, found in asked.items()
        }  # fmt: skip
        return {
            name: [v for v in swept if any(v in direct[n] for n in reachable([name], through))]
            for name in self.steps
        }

    def _task(
        self,
        step: _Said,
        case: Mapping[str, Any],
        asked: Sequence[tuple[Mapping[str, Any], Any]],
        depends: Mapping[str, Sequence[str]],
        cases: Sequence[Mapping[str, Any]],
    ) -> Task | None:
        """Return a step in one case, its references resolved."""
        parameters = next((p for own, p in asked if project(case, list(own)) == own), None)
        if parameters is None:
            return None
        needs: list[str] = []
        files: dict[str, Path] = {}

        def resolved(one: Parameter, value: Reference) -> Iterator[Reference]:
            if value.name in self.steps:
                names = self._instances(value, case, depends, cases)
                self._check_fit(step, one, value.name)
                needs.extend(names)
                yield from (replace(_plain(value), name=name) for name in names)
                return
            if isinstance(value, Each):
                hint = meant(value.name, self.steps)
                self.mistakes.add(_at(step, one), f"there is no step {value.name!r}", hint)
                return
            for name, path in self._files(step, one, value.name):
                files[name] = path
                yield replace(_plain(value), name=name)

        changed: dict[str, Any] = {}
        for one in parameters_of(type(parameters)):
            value = getattr(parameters, one.name)
            values = value if one.many else (value,)
            if not one.doc.recipe or not any(map(one.names, values)):
                continue
            found = [r for v in values for r in resolved(one, _as_reference(v))]
            plain = [r if one.kind is Reference else r.name for r in found]
            changed[one.name] = tuple(plain) if one.many else next(iter(plain), value)
        variables = {**self.variables, **case}
        save = filled(step.save, (*step.place, "save"), variables, self.mistakes)
        known = all(name in variables for name in used_in(step.save))
        path = self._save_path(step, save) if known else None
        if path is not None:
            self._check_name(step, path, getattr(parameters, "to", None))
        return Task(
            step.name + case_label(case), step.name, case, step.verb,
            replace(parameters, **changed), path, tuple(dict.fromkeys(needs)), files,
        )  # fmt: skip

    def _instances(
        self,
        value: Reference,
        case: Mapping[str, Any],
        depends: Mapping[str, Sequence[str]],
        cases: Sequence[Mapping[str, Any]],
    ) -> list[str]:
        """Return the tasks that a reference to a step means: its own case's, or all that agree."""
        theirs = depends[value.name]
        if not isinstance(value, Each):
            return [value.name + case_label(project(case, theirs))]
        fits = [c for c in cases if all(c[name] == wanted for name, wanted in case.items())]
        return [value.name + case_label(c) for c in _distinct(fits, theirs)]

    # --- what names stand for ---------------------------------------------------------------------

    def _check_fit(self, step: _Said, one: Parameter, name: str) -> None:
        gives = self.steps[name].verb.gives
        fits = _FITS[one.doc.completes or ""]
        if not fits:
            self.mistakes.add(
                _at(step, one), f"{one.word} needs a folder, and the step {name!r} gives none"
            )
        elif gives not in fits:
            wanted = " or ".join(_FITS[one.doc.completes or ""])
            self.mistakes.add(
                _at(step, one), f"{one.word} needs an {wanted}, and the step {name!r} gives a {gives}"
                if wanted.startswith("adapter")
                else f"{one.word} needs a {wanted}, and the step {name!r} gives an {gives}"
            )  # fmt: skip

    def _files(self, step: _Said, one: Parameter, name: str) -> list[tuple[str, Path]]:
        """Return (name, file) of what a name stands for: an input, a path, a base, of the library.

        A folder or pattern stands for several where a parameter is for looking at files.
        """
        if name in self.inputs:
            return [(name, self.inputs[name].path)]
        holds = str(one.doc.completes)
        if (holds, name) not in self._found:
            self._found[holds, name] = self._looked_up(step, one, name)
        return self._found[holds, name]

    def _looked_up(self, step: _Said, one: Parameter, name: str) -> list[tuple[str, Path]]:
        holds = str(one.doc.completes)
        try:
            if holds != "files":
                return [(name, find(name, holds, root=self.root))]
            paths = files_of(name, self.root)
        except NotFound as error:
            hint = meant(name, (*self.steps, *self.inputs)) or error.hint
            problem = f"{name!r} is no step, no input and no file"
            self.mistakes.add(_at(step, one), problem, hint)
            return []
        except LoramergeError as error:
            self.mistakes.caught(_at(step, one), error)
            return []
        return [(name, paths[0])] if len(paths) == 1 else [(str(path), path) for path in paths]

    def _save_path(self, step: _Said, save: Any) -> Path | None:
        if save is None:
            return None
        place = (*step.place, "save", "=")
        if not isinstance(save, str) or not save.strip():
            self.mistakes.add(place, f"save names a file, and {save!r} is none")
            return None
        path = below(self.root, save)
        if step.verb.gives == "picture" and path.suffix.lower() != ".png":
            self.mistakes.add(place, f"{step.verb.name} gives a picture, and saves it as PNG",
                              f"save: {Path(save).with_suffix('.png').as_posix()}")  # fmt: skip
        if step.verb.gives == "report" and path.suffix.lower() != ".json":
            self.mistakes.add(place, f"{step.verb.name} gives a report, and saves it as JSON",
                              f"save: {Path(save).with_suffix('.json').as_posix()}")  # fmt: skip
        return path

    def _check_name(self, step: _Said, path: Path, dialect: str | None) -> None:
        """Note a name that a file of the dialect asked for cannot have."""
        if dialect not in DIALECTS:
            return
        try:
            adapter_output(path, DIALECTS[dialect], force=True)
        except LoramergeError as error:
            self.mistakes.add((*step.place, "save", "="), error.problem)

    # --- the whole --------------------------------------------------------------------------------

    def _check_uses(self, used: Collection[str]) -> None:
        """Note steps whose results go nowhere."""
        for name, step in self.steps.items():
            if step.save is None and step.verb.gives == "adapter" and name not in used:
                problem = f"nothing uses the step {name!r}, and it saves nothing"
                self.mistakes.add(step.place, problem, "give it a save: FILE")

    def _check_outputs(self, tasks: Mapping[str, Task]) -> None:
        """Note outputs that would lie where another output or an input does."""
        taken: dict[str, Task] = {}
        read = {os.path.realpath(p): n for t in tasks.values() for n, p in t.files.items()}
        for task in tasks.values():
            if task.save is None:
                continue
            place = ("steps", task.step, "save", "=")
            real = os.path.realpath(task.save)
            other = taken.setdefault(real, task)
            if other is not task and other.step == task.step:
                hint = "use its variables in the name: " + ", ".join(
                    f"${{{name}}}" for name in task.case
                )
                self.mistakes.add(place, f"all cases of {task.step!r} save to one path", hint)
            elif other is not task:
                problem = f"{task.step!r} and {other.step!r} save to one path"
                self.mistakes.add(place, problem)
            if real in read:
                self.mistakes.add(
                    place, f"this would replace {read[real]!r}, which the recipe reads"
                )


def _known(given: Mapping[str, Any], names: Any, option: str, what: str) -> None:
    """Refuse values from outside for what the recipe does not have.

    Raises:
        UsageError: naming the nearest that it has.
    """
    for name in given:
        if name not in names:
            hint = meant(name, names) or f"it has {', '.join(names) or 'none'}"
            raise UsageError(f"{option}: the recipe has no {what} {name!r}", hint=hint)


def _variables_in(content: Mapping[str, Any]) -> set[str]:
    found: set[str] = set()
    for part in (content.get("vars"), content.get("sweep")):
        for one in part if isinstance(part, list) else [part]:
            found |= set(one) if isinstance(one, Mapping) else set()
    return found


def _distinct(cases: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the cases as far as some variables make them up, each once."""
    seen: dict[str, dict[str, Any]] = {}
    for case in cases:
        part = project(case, names)
        seen.setdefault(repr(part), part)
    return list(seen.values())


def _references(parameters: Any) -> Iterator[tuple[Parameter, Reference]]:
    """Yield every reference of a step's parameters."""
    for one in parameters_of(type(parameters)):
        value = getattr(parameters, one.name)
        if one.doc.recipe:
            for part in value if one.many else (value,):
                if one.names(part):
                    yield one, _as_reference(part)


def _as_reference(value: Any) -> Reference:
    return value if isinstance(value, Reference) else Reference(str(value))


def _plain(value: Reference) -> Reference:
    return Reference(value.name, value.weight, value.written)


def _at(step: _Said, one: Parameter) -> Place:
    return (*step.place, step.verb.name, one.word)
