"""Generators of stems: prefixes before spellings of module paths.

The prefixes of a component are the family's, where it states them for the dialect, else the dialect's
own usual ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter

from loramerge.dialects.spec import Fused, Modules, Stems
from loramerge.families import Family, Module
from loramerge.families.levels import LEVELS, without_language_model, without_text_model

__all__ = [
    "COMPONENTS",
    "Path",
    "Prefixes",
    "both",
    "dotted",
    "ending",
    "flat",
    "flat_short",
    "path",
    "prefixes",
    "short_path",
    "spell",
]

Prefixes = Callable[[Family, str], tuple[str, ...]]
Path = Callable[[Family, str, Module], str | None]
Usual = Mapping[str, tuple[str, ...]]

# what components are called where they stand in keys
COMPONENTS = (
    "unet", "text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4", "transformer",
    "transformer_2", "text_conditioner", "connectors",
)  # fmt: skip


def prefixes(dialect: str, usual: Usual | Callable[[str], tuple[str, ...]]) -> Prefixes:
    """Return the function that gives the prefixes of a component in a dialect.

    Args:
        usual: component → prefixes, where the family states none.
    """
    given = usual if callable(usual) else lambda component: usual.get(component, ())

    def of(family: Family, component: str) -> tuple[str, ...]:
        own = family.prefixes.get(dialect, {})
        return own[component] if component in own else given(component)

    return of


def dotted(component: str) -> tuple[str, ...]:
    """Return the prefix that is the name of the component."""
    return (f"{component}.",)


def ending(prefixes: Prefixes, end: str) -> Prefixes:
    """Return those of the prefixes that end so."""
    return lambda family, component: tuple(
        prefix for prefix in prefixes(family, component) if prefix.endswith(end)
    )


def spell(prefixes: Prefixes, *paths: Path) -> Stems:
    """Make a generator of stems: each prefix before each spelling of each module's path."""

    def stems(family: Family, modules: Modules) -> Iterator[tuple[str, str]]:
        for component, group in groupby(modules, itemgetter(0)):
            heads = prefixes(family, component)
            for _, module in group if heads else ():
                name = f"{component}.{module.path}"
                spelled = [path(family, component, module) for path in paths]
                for head in heads:
                    for one in spelled:
                        if one is not None:
                            yield head + one, name

    return stems


def both(*parts: Stems) -> Stems:
    """Chain generators of stems; the spelling of the first is written."""

    def stems(family: Family, modules: Modules) -> Iterator[tuple[str, str | Fused]]:
        known = list(modules)
        for part in parts:
            yield from part(family, known)

    return stems


def path(family: Family, component: str, module: Module) -> str:
    """Return the path as it is."""
    return module.path


def short_path(family: Family, component: str, module: Module) -> str | None:
    """Return the path without a level that a version of transformers puts into a text encoder."""
    if not module.path.startswith(LEVELS):
        return None
    short = without_language_model(without_text_model(module.path))
    return short if short != module.path else None


def flat(family: Family, component: str, module: Module) -> str:
    """Return the path with underscores for dots."""
    return module.path.replace(".", "_")


def flat_short(family: Family, component: str, module: Module) -> str | None:
    """Return `short_path` with underscores for dots."""
    short = short_path(family, component, module)
    return None if short is None else short.replace(".", "_")
