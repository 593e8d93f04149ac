"""The parts of a dialect: forms that spell keys, and the place where alpha lives.

A key is `stem + suffix`: the stem says which module, the suffix which role a tensor plays there.
Keys are never parsed into module names: for a family every stem a form can spell is generated
forward (`stem_table`), and reading is a look-up in that table. A stem may stand for several modules that
the dialect stores fused (`Fused`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, ValuesView
from dataclasses import field
from functools import cache
from typing import Literal

from loramerge.dialects.words import NO_WORDS, Words
from loramerge.families import Family, Module
from loramerge.records import NamedTuple, record, row_maker

__all__ = [
    "Container",
    "Dialect",
    "Embeddings",
    "Form",
    "Fused",
    "Modules",
    "Stem",
    "StemTable",
    "Stems",
    "probe_stems",
    "stem_table",
]


class Fused(NamedTuple):
    """The modules of a stem that is not just one module.

    Args:
        modules: full names, in the order of their rows.
        spans: how many equal parts of the rows each takes; nothing for a single module.
        swapped: the two halves of a module's rows are in the other order.
    """

    modules: tuple[str, ...]
    spans: tuple[int, ...] = ()
    swapped: bool = False


Modules = Iterable[tuple[str, Module]]  # component name, module
Stems = Callable[[Family, Modules], Iterator[tuple[str, "str | Fused"]]]
AlphaPlace = Literal["tensor", "header", "config", "none"]
Container = Literal["plain", "kohya", "diffusers", "peft", "lora_diffusion", "gguf"]
Embeddings = Literal["key", "bundle", "token"]


class Stem(NamedTuple):
    """The meaning of a stem: modules, their full-width shape, and the form that spells them.

    Args:
        modules, spans, swapped: see `Fused`; nearly always one module.
        shape: of all modules together.
    """

    modules: tuple[str, ...]
    form: int
    shape: tuple[int, ...]
    spans: tuple[int, ...] = ()
    swapped: bool = False

    @property
    def module(self) -> str:
        """The module, or all of them joined by `+`."""
        return "+".join(self.modules)


@record(eq=False)
class Form:
    """One way of spelling keys.

    Args:
        stems: function of a family and some of its modules that yields (stem, full module name or
            `Fused`); the first stem of a module is the one that is written.
        suffixes: role → accepted suffixes, separator included; the first is written.
        containers: whose suffixes of kinds it takes beside its own, see `Words`.
        written: whether it is written, too; otherwise it is what some programs say, and few read.
    """

    stems: Stems = field(repr=False)
    suffixes: Mapping[str, tuple[str, ...]]
    containers: tuple[str, ...] = ()
    written: bool = True

    def spelled(self, words: Words) -> Mapping[str, tuple[str, ...]]:
        """Return role → suffixes: its own, and those of kinds."""
        return _spelled(self, words)


@record(eq=False)
class Dialect:
    """A convention for naming the tensors of an adapter.

    Args:
        name: the word users type.
        title: for people.
        example: a key, as an example in the docs.
        forms: how keys are spelled; writing uses the first form that has the module.
        alpha: where the scale is kept: beside the factors, in the header's metadata, in a config
            file, or nowhere (then it is folded into up on writing; one that a file has is read).
        states_alpha: whether every module of a diffusion transformer has an alpha, even one that says
            no more than the rank: trainers of kohya's line do not load a file without.
        prefixes: beginning of a stem → component, for files of no known family (longest wins).
        writable: a description of the requirements for writing it.
        order: of the dialects that have a suffix, the lowest is meant where no prefix tells; the
            very lowest is written where nothing else is known.
        programs: programs that read it best, unless a family says another.
        marks: further beginnings of stems that identify the dialect and name no component.
        marked_after: prefixes (`""` for none) after which names of families may identify it; see
            `Family.marks`.
        marked_by_heads: whether `Family.heads` identify it.
        container: the metadata and configuration of its files; see `adapter.formats`.
        folder: whether it is written as a folder.
        one_file: how the same keys are written without a folder, of adapters that came so and where
            the output is named as a file; None where they never are.
        in_gguf: how the same adapters are written for llama.cpp, where the output is named `.gguf`.
        alone: components that a folder without sub-folders may be of.
        pickle: whether it may also be written as a pickle.
        positional: whether stems count modules, so that none may be missing.
        embeddings: how embeddings are carried: as A1111's bundles, as a token with one vector, under
            the key they came with, or not at all.
    """

    name: str
    title: str
    example: str
    forms: tuple[Form, ...]
    alpha: AlphaPlace
    prefixes: Mapping[str, str]
    writable: str
    order: int = 100
    programs: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    marked_after: tuple[str, ...] = ()
    marked_by_heads: bool = False
    container: Container = "plain"
    folder: bool = False
    one_file: Dialect | None = None
    in_gguf: Dialect | None = None
    alone: frozenset[str] = frozenset()
    pickle: bool = False
    positional: bool = False
    states_alpha: bool = False
    embeddings: Embeddings | None = "key"

    @property
    def heads(self) -> tuple[str, ...]:
        """The beginnings of stems that identify the dialect, whatever the family."""
        return (*self.prefixes, *self.marks)

    def heads_of(self, family: Family) -> tuple[str, ...]:
        """Return the beginnings of stems that identify the dialect for a family."""
        return (*family.marks.get(self.name, ()), *(family.heads if self.marked_by_heads else ()))

    def roles(self, words: Words = NO_WORDS) -> frozenset[str]:
        """Return every role some form can write.

        Args:
            words: how kinds are spelled, for roles that are not the dialect's own.
        """
        forms = (form for form in self.forms if form.written)
        return frozenset(role for form in forms for role in form.spelled(words))

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

    def key(
        self,
        family: Family,
        modules: str | tuple[str, ...],
        role: str,
        words: Words = NO_WORDS,
    ) -> str | None:
        """Return the key to write for a role of a module, or of a site, or None if there is none.

        Args:
            words: how kinds are spelled, for roles that are not the dialect's own.
        """
        site = (modules,) if isinstance(modules, str) else modules
        for stem, form in _written(self, family).get(site, ()):
            suffixes = self.forms[form].spelled(words).get(role)
            if suffixes and self.forms[form].written:
                return stem + suffixes[0]
        return None

    def beside(self, key: str, role: str, wanted: str, words: Words = NO_WORDS) -> str | None:
        """Return the key to write for a role beside the key of another, or None if there is none.

        Args:
            key: of `role`, as a file spells it.
        """
        for form in self.forms:
            ends = form.spelled(words)
            suffix = next((end for end in ends.get(role, ()) if key.endswith(end)), None)
            if suffix and form.written and ends.get(wanted):
                return key.removesuffix(suffix) + ends[wanted][0]
        return None

    def stem(self, family: Family, modules: tuple[str, ...]) -> Stem | None:
        """Return the stem of a site, or None if the dialect writes no such site."""
        for stem, form in _written(self, family).get(modules, ()):
            if self.forms[form].written:
                return stem_table(self, family)[stem]
        return None

    def stems_of(self, family: Family, component: str) -> Mapping[str, str]:
        """Return stem → module of everything that the dialect names of a component."""
        return _stems_of(self, family).get(component, {})

    def layout(self, family: Family) -> Mapping[str, Fused]:
        """Return module → the modules it is stored with; those stored alone are absent."""
        return _layout(self, family)


@cache
def _stems_of(dialect: Dialect, family: Family) -> Mapping[str, Mapping[str, str]]:
    """Return component → stem → module."""
    found: dict[str, dict[str, str]] = {}
    for stem, what in stem_table(dialect, family).items():
        found.setdefault(what.modules[0].partition(".")[0], {})[stem] = what.module
    return found


@cache
def _spelled(form: Form, words: Words) -> Mapping[str, tuple[str, ...]]:
    of_kinds = (words.suffixes.get(container, {}) for container in form.containers)
    return {role: ends for table in (form.suffixes, *of_kinds) for role, ends in table.items()}


def _fused(target: str | Fused) -> Fused:
    return Fused((target,)) if isinstance(target, str) else target


def _shape(target: Fused, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape of all modules of a stem together, one above the other."""
    first, *rest = (shapes[name] for name in target.modules)
    return (first[0] + sum(shape[0] for shape in rest), *first[1:])


_stem_of = row_maker(Stem)


class StemTable(Mapping[str, Stem]):
    """Every stem that a dialect can spell for a family, with its modules.

    Made part by part, one component in one form after the other: a file that has but the usual stems
    of a UNet need not wait for those of text encoders. Whoever walks over it sees all.
    """

    def __init__(self, dialect: Dialect, family: Family) -> None:
        self._dialect, self._family = dialect, family
        self._known: dict[str, Stem] = {}
        self._parts = self._make_parts()
        self._lock = threading.Lock()

    def _make_parts(self) -> Iterator[None]:
        """Add one part at each step.

        Raises:
            ValueError: if two modules are spelled alike (a bug in the dialect's table).
        """
        for index, form in enumerate(self._dialect.forms):
            for component in self._family.components:
                modules = [(component.name, module) for module in component.modules]
                shapes = {f"{component.name}.{m.path}": m.shape for m in component.modules}
                single: dict[str, Stem] = {}  # nearly all, and one module has several stems
                for spelled, what in form.stems(self._family, modules):
                    if isinstance(what, Fused):
                        shape = _shape(what, shapes)
                        stem = Stem(what.modules, index, shape, what.spans, what.swapped)
                    elif what in single:
                        stem = single[what]
                    else:
                        stem = single[what] = _stem_of(((what,), index, shapes[what], (), False))
                    known = self._known.setdefault(spelled, stem)
                    if known is not stem:
                        self._require_same(spelled, known, stem)
                yield

    def _require_same(self, spelled: str, known: Stem, stem: Stem) -> None:
        if (known.modules, known.swapped) != (stem.modules, stem.swapped):
            raise ValueError(
                f"{self._dialect.name} spells two modules of {self._family.name} alike: "
                f"{spelled} is {known.module} and {stem.module}"
            )

    def _grow(self) -> bool:
        """Add a part; return whether there was one left."""
        with self._lock:
            return next(self._parts, self) is None

    def __getitem__(self, stem: str) -> Stem:
        found = self.get(stem)
        if found is None:
            raise KeyError(stem)
        return found

    def _whole(self) -> dict[str, Stem]:
        while self._grow():
            pass
        return self._known

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole())

    def __len__(self) -> int:
        return len(self._whole())

    def get(self, stem: str, default: None = None) -> Stem | None:  # type: ignore[override]
        """Return the modules of a stem, or None."""
        found = self._known.get(stem)
        while found is None and self._grow():
            found = self._known.get(stem)
        return found

    def items(self) -> ItemsView[str, Stem]:
        return self._whole().items()

    def values(self) -> ValuesView[Stem]:
        return self._whole().values()


@cache
def stem_table(dialect: Dialect, family: Family) -> StemTable:
    """Return the stems of a dialect for a family.

    Raises:
        ValueError: here or later, if two modules are spelled alike (a bug in the dialect's table).
    """
    return StemTable(dialect, family)


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
    spelled = (
        (stem, _fused(what)) for form in dialect.forms for stem, what in form.stems(family, probes)
    )
    return {
        stem: _shape(target, shapes)
        for stem, target in spelled
        if all(name in shapes for name in target.modules)
    }


@cache
def _written(dialect: Dialect, family: Family) -> Mapping[tuple[str, ...], list[tuple[str, int]]]:
    """Modules of a site → the first stem of each form that has it, with the form's index."""
    table: dict[tuple[str, ...], dict[int, str]] = {}
    for stem, (modules, form, *_) in stem_table(dialect, family).items():
        table.setdefault(modules, {}).setdefault(form, stem)
    return {
        modules: [(stem, form) for form, stem in sorted(stems.items())]
        for modules, stems in table.items()
    }


@cache
def _layout(dialect: Dialect, family: Family) -> Mapping[str, Fused]:
    """Module → the fused modules of the first form that has it, where they are several."""
    first: dict[str, Stem] = {}
    for stem in stem_table(dialect, family).values():  # in the order of the forms
        for module in stem.modules:
            first.setdefault(module, stem)
    return {
        module: Fused(stem.modules, stem.spans)
        for module, stem in first.items()
        if len(stem.modules) > 1
    }
