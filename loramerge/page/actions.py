"""Actions: a verb with values in the words of recipes, checked, and said as YAML and as a command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loramerge.errors import LoramergeError, UsageError, listed
from loramerge.library.lookup import below, find
from loramerge.page.forms import is_offered
from loramerge.page.places import Places
from loramerge.parameters import parameters_of, value_of
from loramerge.recipe.writing import recipe_content, yaml_text
from loramerge.steps import engine
from loramerge.steps.parameters import Verb, command_words
from loramerge.steps.references import Reference
from loramerge.verbs import verb_named

__all__ = ["Action", "action_of", "check_paths"]


@dataclass(frozen=True)
class Action:
    """What the page wants done.

    Args:
        parameters: those of the verb.
    """

    verb: Verb
    values: Mapping[str, Any]
    parameters: Any

    @property
    def command(self) -> str:
        """The command line that does the same, quoted for a shell."""
        return shlex.join(command_words(self.verb.name, self.parameters))

    @property
    def output(self) -> str | None:
        """The path that it names for its result; None if the verb chooses one."""
        found = getattr(self.parameters, "output", None)
        return None if found is None else str(found)

    def recipe(self, folder: Path) -> str:
        """Return the recipe that does the same, with paths relative to a folder."""
        result = _Result(None if self.output is None else below(folder, self.output))
        return yaml_text(recipe_content([(self.verb.name, self.parameters, result)], folder))


@dataclass(frozen=True)
class _Result:
    """Stands for the result of a verb that has not run yet."""

    output: Path | None


def action_of(verb: object, values: object, places: Places) -> Action:
    """Return an action whose values fit the verb and whose paths the page may use.

    Raises:
        UsageError: naming what does not fit.
    """
    found = verb_named(verb) if isinstance(verb, str) else None
    if found is None:
        raise UsageError(f"{verb!r} is not a verb")
    if not isinstance(values, Mapping):
        raise UsageError("the values are not a mapping", found=repr(values)[:200])
    offered = {
        one.word for one in parameters_of(found.parameters, installed=True) if is_offered(one)
    }
    for word in values:
        if word not in offered:
            raise UsageError(
                f"{word!r} is not a parameter on the page", expected=listed(sorted(offered), 60)
            )
    parameters = engine.parameters_from(found.parameters, values)
    check_paths(parameters, places)
    if hasattr(parameters, "check"):
        parameters.check()
    return Action(found, dict(values), parameters)


def check_paths(parameters: Any, places: Places) -> None:
    """Refuse parameters that name a file where the page may not read or write.

    Raises:
        UsageError: naming the path.
    """
    for holds, name in _named(parameters):
        if _is_path(name):
            places.allowed(name)
        if holds is None:
            places.allowed(name)
            continue
        try:
            place = find(name, holds, root=places.folder)
        except LoramergeError:
            continue  # the verb says so better
        places.allowed(place)


def _named(parameters: Any) -> Iterator[tuple[str | None, str]]:
    """Yield what parameters name, with what it holds; None for an output."""
    for one in parameters_of(type(parameters)):
        value = value_of(parameters, one)
        for single in value if one.many else (value,):
            if one.name == "output" and single is not None:
                yield None, str(single)
            elif one.names(single):
                holds = str(one.doc.completes)
                if isinstance(single, Reference):
                    yield single.holds(holds), single.name
                else:
                    yield holds, str(single)


def _is_path(name: str) -> bool:
    """Return whether a name is written as a path, so that it may lead anywhere."""
    return Path(name).is_absolute() or ".." in name.replace("\\", "/").split("/") or name[:1] == "~"


def at(action: Action, output: Path) -> Action:
    """Return the same action with its result at another path."""
    return replace(action, parameters=replace(action.parameters, output=str(output)))
