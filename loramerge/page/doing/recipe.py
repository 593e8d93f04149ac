"""Read a recipe: its tasks, what they would write, and its graph; or run it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loramerge.errors import RecipeError, UsageError, in_recipe
from loramerge.events import Notify
from loramerge.library.paths import below
from loramerge.page.actions import container, written
from loramerge.page.places import Places
from loramerge.parameters import parameters_of, value_of
from loramerge.recipe.mistakes import Mistakes
from loramerge.recipe.picture import edges, nodes
from loramerge.recipe.plan import plan_recipe
from loramerge.recipe.recipe import Recipe, recipe_of
from loramerge.recipe.run import run_recipe
from loramerge.recipe.task import Task
from loramerge.recipe.text import parse_text, read_text, scalar_of
from loramerge.recipe.variables import substitute
from loramerge.steps.parameters import Context

__all__ = ["do"]

_MOST = 1 << 20  # characters, as of a file
_NAME = "recipe"  # of one that is in no file


def do(request: Mapping[str, Any], notify: Notify) -> Any:
    """Return what is known of the recipe in the file `path`, or in `text`; with `run`, run it.

    Relative paths start from the folder of the file; those of a text, from the current folder.

    Raises:
        UsageError: if it names a file where the page may not read or write; nothing was done then.
        LoramergeError: of the run.
    """
    places = Places(Path.cwd(), tuple(map(Path, request["opened"])))
    opened = _RecipeText(request, places)
    if not request.get("run"):
        return opened.described(notify)
    recipe = opened.checked()
    if opened.path is not None:  # its state is written beside it
        places.writable(opened.path.with_suffix(".state.json"))
    context = Context(notify=notify)
    return run_recipe(recipe, context, force=bool(request.get("force"))).json()


class _RecipeText:
    """The text of a recipe, and what it says before it is checked.

    Args:
        request: with `path` or `text`, and `set`: variable → value, texts as after `--set`. A text that
            was changed and is not saved yet has `beside`, the path of its file.

    Raises:
        UsageError, FileError: if it cannot be read, or may not be.
        RecipeError: if it is not YAML.
    """

    def __init__(self, request: Mapping[str, Any], places: Places) -> None:
        given = request.get("path")
        path = request.get("beside") if given is None else given
        self.places = places
        self.path = None if path is None else Path(path)
        self.root = Path() if self.path is None else self.path.parent
        self.name = _NAME if self.path is None else str(self.path)
        if given is None:
            self.text = str(request.get("text") or "")
            if len(self.text) > _MOST:
                raise UsageError("this text is too long to be a recipe")
        else:
            places.allowed(given)
            self.text = read_text(Path(given))
        stated = dict(request.get("set") or {})
        self.set = {n: scalar_of(v) if isinstance(v, str) else v for n, v in stated.items()}

    def checked(self) -> Recipe:
        """Return the recipe, after all paths in it were found in places of the page.

        Raises:
            RecipeError: with all mistakes.
            UsageError: naming a path elsewhere.
        """
        content, mistakes = parse_text(self.text, self.name)
        self._check_before(content)
        recipe = recipe_of(content, self.root, mistakes, set=self.set, path=self.path)
        self._check(recipe)
        return recipe

    def described(self, notify: Notify) -> dict[str, Any]:
        """Return what the page shows; the mistakes instead of tasks where there are some."""
        found: dict[str, Any] = {
            "name": self.name,
            "text": self.text,
            "variables": {},
            "sweep": {},
            "inputs": {},
            "tasks": [],
            "graph": {"nodes": [], "edges": []},
            "mistakes": [],
        }
        try:
            found |= _stated(parse_text(self.text, self.name)[0], {})
            recipe = self.checked()
            plan = plan_recipe(recipe, Context(notify=notify))
        except (RecipeError, UsageError) as error:
            lines = getattr(error, "mistakes", ())
            return found | {"mistakes": list(lines) or [error.text(in_recipe)]}
        return found | {
            "tasks": [{**_task(one.task), **one.json()} for one in plan.tasks.values()],
            "graph": {
                "nodes": [
                    {"id": n, "label": text, "file": file} for n, text, file in nodes(recipe)
                ],
                "edges": [list(edge) for edge in edges(recipe)],
            },
        }

    def _check_before(self, content: Any) -> None:
        """Refuse paths of inputs and patterns of files, which are read when the recipe is checked."""
        stated = _stated(content, self.set)
        unheard = Mistakes(self.name, {})  # whoever checks the recipe tells them
        named = [
            one["path"] if isinstance(one, Mapping) and "path" in one else one
            for one in stated["inputs"].values()
        ]
        swept = [one.get("files") for one in stated["sweep"].values() if isinstance(one, Mapping)]
        for value in (*named, *swept):
            text = substitute(value, (), stated["variables"], unheard)
            if isinstance(text, str):
                self.places.allowed(below(self.root, text))

    def _check(self, recipe: Recipe) -> None:
        read = [one.path for one in recipe.inputs.values()]
        for task in recipe.tasks.values():
            read += task.files.values()
            for name, path in _paths(task):
                if written(name):
                    self.places.writable(path)
                else:
                    read.append(Path(path))
        found = [container(path.absolute()) for path in read]
        self.places.check(found)
        self.places.check_contents(found)


def _paths(task: Task) -> Iterator[tuple[str, str]]:
    """Yield the paths in the parameters of a task, and the one it saves to, with their words."""
    if task.save is not None:
        yield "output", str(task.save)
    for one in parameters_of(type(task.parameters)):
        if one.doc.path:
            value = value_of(task.parameters, one)
            yield from ((one.name, str(v)) for v in (value if one.many else (value,)) if v)


def _task(task: Task) -> dict[str, Any]:
    return {"name": task.name, "files": [str(path) for path in task.files.values()]}


def _stated(content: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return variables, sweep and inputs, as far as they are mappings."""

    def mapping(word: str) -> dict[str, Any]:
        found = content.get(word) if isinstance(content, Mapping) else None
        return dict(found) if isinstance(found, Mapping) else {}

    variables, sweep = mapping("vars"), mapping("sweep")
    return {
        "variables": {name: given.get(name, value) for name, value in variables.items()},
        "sweep": {name: given.get(name, value) for name, value in sweep.items()},
        "inputs": mapping("inputs"),
    }
