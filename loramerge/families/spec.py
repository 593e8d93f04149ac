"""What a family is: components made of modules, and where each layout stores them.

A module is one layer of the network, named `component.path` with the diffusers path. A parameter is
its `weight` or `bias`. A layout says, for each parameter, the `Slot` it lies in: a tensor's name, and
for fused tensors which range of its rows. Ranges are counted in equal parts of the tensor's height, so
that they hold for networks of every width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, NamedTuple

__all__ = [
    "Component",
    "Family",
    "Layer",
    "Module",
    "Parameter",
    "Slot",
    "Slots",
    "Spelling",
    "parameters",
    "plain_slot",
]

Parameter = Literal["weight", "bias"]
Layer = Literal["linear", "conv", "norm", "embedding", "matrix"]


class Module(NamedTuple):
    """One layer: its path inside the component, its type, and the shape of its weight.

    A `matrix` is a bare parameter (no `.weight` after its name), as `class_embedding` is.
    """

    path: str
    layer: Layer
    shape: tuple[int, ...]
    bias: bool


class Slot(NamedTuple):
    """Where a parameter lies in a checkpoint.

    `span` parts from `part` on, of `parts` equal row ranges of the tensor `tensor`; `transposed` if
    the tensor holds the transpose of the weight, `swapped` if it holds the two halves of its rows
    in the other order.
    """

    tensor: str
    part: int = 0
    parts: int = 1
    transposed: bool = False
    span: int = 1
    swapped: bool = False


# where a parameter is stored, or None where it is not
Slots = Callable[[Module, Parameter], Slot | None]


@dataclass(frozen=True, eq=False)
class Component:
    """A network of a family: `unet`, `text_encoder`, …"""

    name: str
    modules: tuple[Module, ...]

    @property
    def by_path(self) -> Mapping[str, Module]:
        """Modules by path."""
        return _by_path(self)


@cache
def _by_path(component: Component) -> Mapping[str, Module]:
    return {module.path: module for module in component.modules}


@dataclass(frozen=True, eq=False)
class Spelling:
    """One way in which checkpoints name the parameters of a component.

    Args:
        layout: `ldm`, `sgm` or `diffusers`: the kind of checkpoint that spells so.
        prefix: what stands before the names in a single file.
        slot: gives the slot of a parameter without the prefix.
    """

    layout: str
    prefix: str
    slot: Slots = field(repr=False)

    def slots(self, component: Component) -> Iterator[tuple[Module, Parameter, Slot]]:
        """Yield every parameter of the component with its slot, the prefix included."""
        for module in component.modules:
            for parameter in parameters(module):
                slot = self.slot(module, parameter)
                if slot is not None:
                    yield module, parameter, slot._replace(tensor=self.prefix + slot.tensor)


@dataclass(frozen=True, eq=False)
class Family:
    """A base architecture.

    Args:
        name: the word users type, e.g. `sd21`.
        title: for people.
        build: makes the components; called once, when first needed.
        spellings: for each component, how checkpoints may name it, the commonest first.
        metadata: beginnings of `ss_base_model_version` and `modelspec.architecture` values that
            name the family.
        verified: which reference the tables are tested against; empty if none, and then the family is
            read-only: its adapters are looked at, mixed and resized, but not baked or converted.
        probes: paths of a few modules that most adapters have, so that detection need not spell all;
            of modules that a layout stores fused, all of them.
        common_dialect: the dialect most programs of this family write.
        sign: pattern that some name of every adapter and checkpoint of the family has; where none
            has it, the tables need not be made.
        never: pattern of a stem that only a relative of the family has, and that rules it out.
        by_shape: relatives have modules of the same names, so that where shapes are known, names
            that a relative has as well do not make it.
        alone_in: a dialect in which, with alphas, only programs of this family write the names that
            it shares with relatives.
        one_alpha: whether diffusers takes the alpha of one module for all of its component.
        programs: program → the dialect it reads best, where it is not the one for most families.
        only_exact: whether it is a small network named as its large relatives are, so that it is what
            has all of its shapes, and nothing else.
    """

    name: str
    title: str
    build: Callable[[], tuple[Component, ...]] = field(repr=False)
    spellings: Mapping[str, tuple[Spelling, ...]] = field(repr=False)
    metadata: tuple[str, ...]
    verified: str = ""
    probes: tuple[str, ...] = ()
    common_dialect: str = "kohya"
    sign: str | None = None
    never: str | None = None
    by_shape: bool = False
    alone_in: str | None = None
    one_alpha: bool = True
    programs: Mapping[str, str] = field(default_factory=dict, repr=False)
    only_exact: bool = False

    @property
    def proven(self) -> bool:
        """Whether the tables are verified; if not, the family is read-only."""
        return bool(self.verified)

    def occurs_in(self, names: str) -> bool:
        """Say whether names, one a line, may be those of an adapter or a checkpoint of the family."""
        return self.sign is None or re.search(self.sign, names) is not None

    @property
    def components(self) -> tuple[Component, ...]:
        """The components, expanded."""
        return _components(self)

    def modules(self) -> Iterator[tuple[str, Module]]:
        """Yield (full name, module) of every module of every component."""
        for component in self.components:
            for module in component.modules:
                yield f"{component.name}.{module.path}", module

    def find(self, name: str) -> Module | None:
        """Return the module of a full name (`unet.conv_in`), or None."""
        component, _, path = name.partition(".")
        for candidate in self.components:
            if candidate.name == component:
                return candidate.by_path.get(path)
        return None


@cache
def _components(family: Family) -> tuple[Component, ...]:
    return family.build()


def parameters(module: Module) -> tuple[Parameter, ...]:
    """Return the parameters a module has."""
    return ("weight", "bias") if module.bias else ("weight",)


def plain_slot(module: Module, parameter: Parameter) -> Slot:
    """Return where a folder of diffusers or transformers stores a parameter: by its own name."""
    return Slot(f"{module.path}.{parameter}")
