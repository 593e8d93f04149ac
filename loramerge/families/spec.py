"""The parts of a family: components made of modules, and where each layout stores them.

A module is one layer of the network, named `component.path` with the diffusers path. A parameter is
its `weight` or `bias`. A layout says, for each parameter, the `Slot` it lies in: a tensor's name,
and for fused tensors which range of its rows. Ranges are counted in equal parts of the tensor's
height, so that they hold for networks of every width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from functools import cache
from typing import Literal

from loramerge.families.usual import Usual
from loramerge.records import NamedTuple, record

__all__ = [
    "ATTENTION",
    "Component",
    "Family",
    "Layer",
    "Metadata",
    "Module",
    "Parameter",
    "Slot",
    "Slots",
    "Spelling",
    "parameters",
    "plain_slot",
]

# "base" is a weight that an adapter brings along, to be changed in place of the base's own
Parameter = Literal["weight", "bias", "base"]
Layer = Literal["linear", "conv", "norm", "embedding", "matrix"]

ATTENTION = "attn"  # what is in the names of its modules


class Module(NamedTuple):
    """One layer: its path inside the component, its type, and the shape of its weight.

    A `matrix` is a bare parameter (no `.weight` after its name), as a table of modulation is.
    """

    path: str
    layer: Layer
    shape: tuple[int, ...]
    bias: bool


class Slot(NamedTuple):
    """The place of a parameter in a checkpoint.

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


@record(eq=False)
class Component:
    """A network of a family: `unet`, `text_encoder`, …

    Args:
        second_of: the component of which it is a second network, with the same modules (Wan 2.2 has
            one transformer for the first steps and one for the last). Files outside of a folder of
            its name hold the first.
    """

    name: str
    modules: tuple[Module, ...]
    second_of: str = ""

    @property
    def by_path(self) -> Mapping[str, Module]:
        """Modules by path."""
        return _by_path(self)


@cache
def _by_path(component: Component) -> Mapping[str, Module]:
    return {module.path: module for module in component.modules}


@record(eq=False)
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

    def slots(self, component: Component) -> tuple[tuple[Module, Parameter, Slot], ...]:
        """Return every parameter of the component with its slot, the prefix included."""
        return _slots(self, component)

    def tensors(self, component: Component) -> tuple[str, ...]:
        """Return the names of the tensors that hold them, one for each parameter."""
        return _tensors(self, component)


@cache
def _tensors(spelling: Spelling, component: Component) -> tuple[str, ...]:
    return tuple(slot.tensor for _, _, slot in _slots(spelling, component))


@cache
def _slots(spelling: Spelling, component: Component) -> tuple[tuple[Module, Parameter, Slot], ...]:
    return tuple(
        (module, parameter, slot._replace(tensor=spelling.prefix + slot.tensor))
        for module in component.modules
        for parameter in parameters(module)
        if (slot := spelling.slot(module, parameter)) is not None
    )


@record
class Metadata:
    """The strings that trainers write into the header of an adapter of a family.

    Args:
        architecture: value of `modelspec.architecture` without `/lora`; None where none is established.
        base_version: value of `ss_base_model_version`; None where no trainer of kohya's line has one.
        network_module: value of `ss_network_module` for a plain LoRA.
        also: further beginnings of the first two values that name the family.
        v2: value of `ss_v2`; None where it says nothing.
        v_prediction: the first two values for a base that predicts v, where they are others.

    Source: sd-scripts' `sai_model_spec.py` and `*_train_network.py` (48d368fa), musubi-tuner's
    `sai_model_spec.py` and `architectures.py` (30c658c4).
    """

    architecture: str | None
    base_version: str | None
    network_module: str = "networks.lora"
    also: tuple[str, ...] = ()
    v2: bool | None = None
    v_prediction: tuple[str, str] | None = None

    def likeness(self, value: str) -> int:
        """Return the length of the longest of the family's words that a value begins with, or 0."""
        known = (self.architecture, self.base_version, *self.also)
        lower = value.lower()
        return max((len(w) for w in known if w and lower.startswith(w.lower())), default=0)


@record(eq=False)
class Family:
    """A base architecture.

    Args:
        name: the word users type, e.g. `sd21`.
        title: for people.
        build: makes the components; called once, when first needed.
        spellings: for each component, how checkpoints may name it, the commonest first.
        metadata: what trainers write into headers.
        verified: which reference the tables are tested against; empty if none, and then the family is
            read-only: its adapters are looked at, mixed and resized, but not baked or converted.
        classes: component → its class in diffusers or transformers.
        prefixes: dialect → component → what stands before its names, the first is written; where
            nothing is said, the dialect's own usual ones.
        original_in: dialects that name the UNet as the single file does.
        renamed: dialect → original name, or the first level of names (`model.`) → what it has there
            for it; both are read.
        heads: beginnings of names without a component, in the single file and in diffusers.
        marks: dialect → further beginnings of stems that only it writes for this family.
        sign: pattern that some name of every adapter and checkpoint of the family has; where none
            has it, the tables need not be made.
        probes: paths of a few modules that most adapters have; of modules that a layout stores
            fused, all of them. Detection spells these before it spells all.
        sizes: for each other network of the same names, its sizes by those that `build` gives.
        twins: models of other families whose attention has the same names and shapes, by the titles
            of those that are families here; an adapter that fits both is taken for this family's.
        shared: pattern of the modules that the twins have too.
        shapes_only: it is a small network named as large ones are, so that names alone do not make it.
        common_dialect: the dialect most programs of this family write.
        programs: program → the dialect it reads best, where it is not the one for most families.
        interleaved: (words in keys, width of a head): a file with such a key stores fused queries,
            keys and values head by head, and not one after the other.
        one_alpha: whether diffusers takes the alpha of one module for all of its component.
        order: lower ones come first in tables.
        gguf: its architecture in the GGUF files that ComfyUI-GGUF reads; `''` where it reads none.
        usual_change: range of ‖ΔW‖ / ‖W‖ among adapters at weight 1, over the modules that they
            change; None where it was not measured.
        usual_norm: range of the mean of ‖ΔW‖_F over their modules, which needs no base; None where
            it was not measured, or `usual_change` says more.
        unreached: pattern of modules that no gradient reaches in training → why; zeros are usual there.
        paired_encoders: whether text_encoder and text_encoder_2 are usually trained together.
        task: the use of its models, as hubs name it (`text-to-image`); None where there are several.
    """

    name: str
    title: str
    build: Callable[[], tuple[Component, ...]] = field(repr=False)
    spellings: Mapping[str, tuple[Spelling, ...]] = field(repr=False)
    metadata: Metadata
    verified: str = ""
    classes: Mapping[str, str] = field(default_factory=dict, repr=False)
    prefixes: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict, repr=False)
    original_in: tuple[str, ...] = ()
    renamed: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    heads: tuple[str, ...] = field(default=(), repr=False)
    marks: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    sign: str | None = None
    probes: tuple[str, ...] = ()
    sizes: tuple[Mapping[int, int], ...] = ()
    twins: tuple[str, ...] = ()
    shared: str = ATTENTION
    shapes_only: bool = False
    common_dialect: str = "kohya"
    programs: Mapping[str, str] = field(default_factory=dict, repr=False)
    interleaved: tuple[tuple[str, ...], int] | None = None
    one_alpha: bool = True
    order: int = 0
    gguf: str = ""
    usual_change: Usual | None = None
    usual_norm: Usual | None = None
    unreached: Mapping[str, str] = field(default_factory=dict, repr=False)
    paired_encoders: bool = False
    task: str | None = None

    @property
    def proven(self) -> bool:
        """True if the tables are verified; if not, the family is read-only."""
        return bool(self.verified)

    def occurs_in(self, names: str) -> bool:
        """Return whether names, one a line, may come from an adapter or a checkpoint of the family."""
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
    """Return the slot of a parameter in a folder of diffusers or transformers: by its own name."""
    return Slot(module.path if module.layer == "matrix" else f"{module.path}.{parameter}")
