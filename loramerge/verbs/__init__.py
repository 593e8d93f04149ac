"""One file per verb: parameters (a frozen dataclass), functions that return a result, and `VERB`.

Commands, recipes and Python find a verb by its name, which is that of its file. Other packages add
verbs by an entry point of the group `loramerge.verbs`: its name is the verb's, its module defines
`VERB`, and may define `render(result)` for the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

from loramerge.discovery import entry_points

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from loramerge.steps.parameters import Verb

__all__ = ["added_verbs", "known_verbs", "verb_module", "verb_named"]

_GROUP = "loramerge.verbs"


@cache
def known_verbs() -> Mapping[str, Verb]:
    """Return name → verb: those of this package, then those that others add."""
    import pkgutil

    modules = sorted(info.name for info in pkgutil.iter_modules(__path__))
    found = (_verb_of(module) for module in map(verb_module, (*modules, *added_verbs())))
    return {verb.name: verb for verb in found if verb is not None}


def verb_named(name: str) -> Verb | None:
    """Return the verb of this name, None if there is none."""
    return _verb_of(verb_module(name))


def verb_module(name: str) -> ModuleType | None:
    """Return the module that defines a verb; the package's own come first.

    Raises:
        UsageError: if the module of another package cannot be imported.
    """
    from importlib import import_module
    from importlib.util import find_spec

    own = f"{__name__}.{name}"
    if name.isidentifier() and find_spec(own) is not None:
        return import_module(own)
    entry = added_verbs().get(name)
    if entry is None:
        return None
    try:
        found = entry.load()
    except Exception as error:
        from loramerge.errors import UsageError

        raise UsageError(
            f"the verb {name!r} cannot be imported: {type(error).__name__}: {error}",
            module=entry.value,
            hint="update or remove the package that adds it",
        ) from error
    assert isinstance(found, ModuleType), f"{entry.value} is not a module"
    return found


@cache
def added_verbs() -> Mapping[str, EntryPoint]:
    """Return name → entry point of the verbs that other packages add."""
    return {entry.name: entry for entry in entry_points(_GROUP)}


def _verb_of(module: ModuleType | None) -> Verb | None:
    from loramerge.steps.parameters import Verb

    found = getattr(module, "VERB", None)
    return found if isinstance(found, Verb) else None
