"""What a dialect is: forms that spell keys, and where alpha lives.

A key is `stem + suffix`: the stem says which module, the suffix which role a tensor plays there.
Keys are never parsed into module names: for a family every stem a form can spell is generated
forward (`stem_table`), and reading is a look-up in that table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, NamedTuple

from loramerge.families import Family, Module

__all__ = ["Dialect", "Form", "Stem", "Stems", "probe_stems", "stem_table"]

Modules = Iterable[tuple[str, Module]]  # component name, module
Stems = Callable[[Family, Modules], Iterator[tuple[str, str]]]
AlphaPlace = Literal["tensor", "header", "config", "none"]


class Stem(NamedTuple):
    """What a stem stands for: a module (name and full-width shape), and the form that spells it."""

    module: str
    form: int
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Form:
    """One way of spelling keys.

    Args:
        stems: function of a family and some of its modules that yields (stem, full module name);
            the first stem of a module is the one that is written.
        suffixes: role → accepted suffixes, separator included; the first is written.
    """

    stems: Stems = field(repr=False)
    suffixes: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Dialect:
    """A convention for naming the tensors of an adapter.

    Args:
        name: the word users type.
        title: for people.
        example: a key, as an example in the docs.
        forms: how keys are spelled; writing uses the first form that has the module.
        alpha: where the scale is kept: beside the factors, in the header's metadata, in a config
            file, or nowhere (then it is folded into up on writing).
        prefixes: beginning of a stem → component, for files of no known family (longest wins).
        loads_in: programs that load it.
        writable: what is needed to write it, in words.
        folder: written as a folder.
    """

    name: str
    title: str
    example: str
    forms: tuple[Form, ...]
    alpha: AlphaPlace
    prefixes: Mapping[str, str]
    loads_in: tuple[str, ...]
    writable: str
    folder: bool = False

    def roles(self) -> frozenset[str]:
        """Return every role some form can write."""
        return frozenset(role for form in self.forms for role in form.suffixes)

    def component_of(self, stem: str) -> tuple[str, str]:
        """Split the stem of an unknown family into (component, rest); the component may be ''."""
        best = max((p for p in self.prefixes if stem.startswith(p)), key=len, default=None)
        return ("", stem) if best is None else (self.prefixes[best], stem[len(best) :])

    def opaque_module(self, stem: str) -> str:
        """Return the module name of a stem of no known family."""
        component, rest = self.component_of(stem)
        return f"{component}.{rest}" if component else rest

    def opaque_stem(self, module: str) -> str:
        """Return the stem to write for a module of no known family, inverse of `opaque_module`."""
        component, _, rest = module.partition(".")
        for prefix, named in self.prefixes.items():
            if named == component and component:
                return prefix + rest
        bare = next((p for p, named in self.prefixes.items() if not named), "")
        return bare + module

    def key(self, family: Family, module: str, role: str) -> str | None:
        """Return the key to write for a role of a module, or None if there is none."""
        spelled = _written(self, family).get(module)
        if spelled is None:
            return None
        for stem, form in spelled:
            suffixes = self.forms[form].suffixes.get(role)
            if suffixes:
                return stem + suffixes[0]
        return None


@cache
def stem_table(dialect: Dialect, family: Family) -> Mapping[str, Stem]:
    """Return every stem the dialect can spell for the family, and what it stands for.

    Raises:
        ValueError: if two modules are spelled alike (a bug in the dialect's table).
    """
    table: dict[str, Stem] = {}
    everything = [(c.name, module) for c in family.components for module in c.modules]
    shapes = {f"{component}.{module.path}": module.shape for component, module in everything}
    for index, form in enumerate(dialect.forms):
        for stem, module in form.stems(family, everything):
            known = table.setdefault(stem, Stem(module, index, shapes[module]))
            if known.module != module:
                raise ValueError(
                    f"{dialect.name} spells two modules of {family.name} alike: "
                    f"{stem} is {known.module} and {module}"
                )
    return table


@cache
def probe_stems(dialect: Dialect, family: Family) -> Mapping[str, tuple[int, ...]]:
    """Return the stems of the family's probes, and the shapes they should have."""
    probes = [
        (component.name, module)
        for component in family.components
        for path in family.probes
        if (module := component.by_path.get(path)) is not None
    ]
    shapes = {f"{component}.{module.path}": module.shape for component, module in probes}
    return {
        stem: shapes[name]
        for form in dialect.forms
        for stem, name in form.stems(family, probes)
        if name in shapes
    }


@cache
def _written(dialect: Dialect, family: Family) -> Mapping[str, list[tuple[str, int]]]:
    """Module → the first stem of each form that has it, with the form's index."""
    table: dict[str, dict[int, str]] = {}
    for stem, (module, form, _) in stem_table(dialect, family).items():
        table.setdefault(module, {}).setdefault(form, stem)
    return {
        module: [(stem, form) for form, stem in sorted(stems.items())]
        for module, stems in table.items()
    }
