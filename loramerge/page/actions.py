"""Actions: a verb with values in the words of recipes, checked, and said as YAML and as a command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loramerge.errors import LoramergeError, UsageError, listed
from loramerge.library.hub import hub_reference
from loramerge.library.lookup import find
from loramerge.library.paths import below
from loramerge.library.patterns import files_of
from loramerge.page.forms import is_offered
from loramerge.page.places import Places
from loramerge.parameters import Parameter, parameters_of, value_of
from loramerge.recipe.saves import WRITTEN
from loramerge.recipe.writing import recipe_content, yaml_text
from loramerge.steps import engine
from loramerge.steps.parameters import Context, Verb, command_words
from loramerge.steps.references import Reference
from loramerge.verbs import verb_named

__all__ = ["Action", "action_of", "check_paths", "container", "written"]

_MOST = 2000  # values of one parameter, each of which may be a file to look for


@dataclass(frozen=True)
class Action:
    """A verb with values, checked.

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

    def recipe(self, folder: Path, output: str | None) -> str:
        """Return the recipe that does the same, with paths relative to a folder.

        Args:
            output: the path that it writes to, None if that is not known.
        """
        result = _Result(None if output is None else below(folder, output))
        return yaml_text(recipe_content([(self.verb.name, self.parameters, result)], folder))


@dataclass(frozen=True)
class _Result:
    """Stands for the result of a verb that has not run yet."""

    output: Path | None


def action_of(verb: object, values: object, places: Places, *, whole: bool = True) -> Action:
    """Return an action whose values fit the verb and whose paths the page may use.

    Args:
        whole: refuse values that the verb cannot run with; each fits its parameter in any case.

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
        if isinstance(values[word], list) and len(values[word]) > _MOST:
            raise UsageError(
                f"{word} has more values than the page takes", expected=f"at most {_MOST}"
            )
    parameters = engine.parameters_from(found.parameters, values)
    check_paths(parameters, places)
    if found.gives == "document":
        _check_document(found, parameters, places)
    check = getattr(parameters, "check", None)
    if whole and callable(check):  # a parameter of inspect has the name
        check()
    return Action(found, dict(values), parameters)


def _check_document(verb: Verb, parameters: Any, places: Places) -> None:
    """Refuse a document that would land where the page may not write: by default it lies beside what it
    describes, which opens no file.

    Raises:
        UsageError: naming the path.
    """
    assert verb.output_path is not None
    try:
        output = verb.output_path(parameters, Context(root=places.folder))
    except LoramergeError:
        return  # there is nothing to describe, which the verb says better
    places.writable(output)


def check_paths(parameters: Any, places: Places) -> list[Path]:
    """Return the files that parameters name; refuse those where the page may not read or write.

    Raises:
        UsageError: naming the path.
    """
    found: list[Path] = []
    read: list[Path] = []
    for one, value in _given(parameters):
        if one.doc.path and written(one.name):
            places.writable(value)
        elif one.doc.path:
            read.append(places.allowed(value))
        elif one.names(value):
            named = value if isinstance(value, Reference) else Reference(str(value))
            found += _files(named, str(one.doc.completes), places)
    places.check(found)
    places.check_contents([*found, *read])
    return found


def written(name: str) -> bool:
    """Return whether a parameter, by its name, is a path to write to; others are read."""
    return name == "output" or name in WRITTEN


def _given(parameters: Any) -> Iterator[tuple[Parameter, Any]]:
    """Yield each parameter with each of its values that are not None."""
    for one in parameters_of(type(parameters)):
        value = value_of(parameters, one)
        for single in value if one.many else (value,):
            if single is not None:
                yield one, single


def _files(named: Reference, completes: str, places: Places) -> list[Path]:
    """Return the files that a name stands for; none where the verb refuses it with better words.

    Raises:
        UsageError: if it is a path that leads elsewhere, or would have to be downloaded.
    """
    name, holds = named.name, named.holds(completes)
    places.allowed(name)  # a name that is no path lies in the current folder
    if hub_reference(name) is not None:
        find(name, "adapters" if holds == "files" else holds, root=places.folder)
        return []  # in the cache of Hugging Face, where its repository and not a path names it
    try:
        if holds == "files":
            return files_of(name, places.folder)
        return [container(find(name, holds, root=places.folder))]
    except LoramergeError:
        return []


def container(path: Path) -> Path:
    """Return the file of `FILE#NAME`, one of several adapters in it; other paths as they are."""
    if "#" not in path.name or path.exists():
        return path
    return path.with_name(path.name.rpartition("#")[0])
