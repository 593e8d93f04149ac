"""The families that a checkpoint may be of, by the names and the shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from loramerge.checkpoint.composed import Composed, Window
from loramerge.checkpoint.files import CheckpointFile, CheckpointFiles
from loramerge.checkpoint.place import Place
from loramerge.families import FAMILIES, UNETS, Component, Family, Module, Parameter, Spelling
from loramerge.families.beside import sort_of
from loramerge.files.dtypes import is_float
from loramerge.files.tensors import Tensor

__all__ = ["Found", "Match", "matching"]

# of a component's parameters must be there for it to be taken; some families list those of several
# networks, of which the smallest have less than half
_SHARE = 0.4
# of a network's weights must be named by the family; one with as many others is another network
_NAMED = 0.75
# Shapes count as in `dialects.fit`: names alone make a family only of what is narrow.
_NARROW, _OTHER = 128, 0.1
_NETWORKS = ("unet", "transformer", "transformer_2")
# parts of one set of weights; the words are those of nunchaku's first layout
_SHARD = re.compile(r"-\d+-of-\d+|^(unquantized_layers|transformer_blocks)\b")


Found = tuple[tuple[int, int, int], Family, "Match"]


def matching(files: CheckpointFiles) -> list[Found]:
    """Return the families that a checkpoint may be of, with the parts of each that it has.

    Families that could not match as many parameters as one that fits are left out. Tables of
    transformers are not made for a UNet. Families of other packages are asked only if no shipped
    family has all shapes.
    """
    names = "\n".join(name for file in files.weights for name in file.weights())
    groups = _FileGroups(files)

    def among(families: Iterable[Family]) -> list[Found]:
        parts = {f: list(_stored_components(f, groups)) for f in families if f.occurs_in(names)}
        most = {family: sum(part.hits for part in those) for family, those in parts.items()}
        found: dict[Family, Found] = {}
        best = 1
        for family in sorted(parts, key=lambda family: -most[family]):
            if most[family] < best:
                break
            match = _match(family, parts[family])
            if match.matched and match.fits and (match.own_shapes or not family.shapes_only):
                found[family] = match.score, family, match
                best = max(best, match.matched)
        return [found[family] for family in parts if family in found]

    added = FAMILIES.added()
    replaced = {family.name for family in added}
    shipped = [family for family in FAMILIES.shipped(UNETS) if family.name not in replaced]
    found = among((*shipped, *added))
    if not any("unet" in match.layouts for _, _, match in found):
        rest = [f for f in FAMILIES.shipped() if f.name not in replaced and f not in shipped]
        found += among(rest)
    if not any(match.own_shapes for _, _, match in found) and FAMILIES.look_for_others():
        found += among(family for family in FAMILIES.added() if family not in added)
    return found


@dataclass
class Match:
    """The parts of a family that a checkpoint has."""

    matched: int
    exact: int
    axes: int
    layouts: dict[str, str]
    slots: dict[tuple[str, Parameter], list[Place]]
    other: int = 0

    @property
    def fits(self) -> bool:
        """True if nearly all shapes are the family's; layers of miniatures do not count."""
        return self.other <= _OTHER * sum(map(len, self.slots.values()))

    @property
    def score(self) -> tuple[int, int, int]:
        return self.matched, self.exact, self.axes

    @property
    def own_shapes(self) -> bool:
        """True if every place has the family's own shape."""
        return self.exact == sum(map(len, self.slots.values()))


def _match(family: Family, parts: Iterable[_Stored]) -> Match:
    """Search every parameter of a family in the components that are stored.

    A tensor that two components could be (a lone text encoder) counts once.
    """
    match = Match(0, 0, 0, {}, {})
    sizes: tuple[Mapping[int, int], ...] = ({}, *family.sizes)
    exact, other = [0] * len(sizes), [0] * len(sizes)
    counted: set[tuple[CheckpointFile, str, int]] = set()
    for component, spelling, names, _ in parts:
        match.layouts[component.name] = spelling.layout
        for module, parameter, place in _places(component, spelling, names):
            site = f"{component.name}.{module.path}", parameter
            match.slots.setdefault(site, []).append(place)
            shape = module.shape if parameter == "weight" else module.shape[:1]
            stored = place.shape
            matrix = len(shape) > 1 and is_float(place.tensor.dtype)  # others may be packed
            wide = matrix and min(stored[:2]) > _NARROW
            for number, size in enumerate(sizes):
                same = stored == (tuple(size.get(n, n) for n in shape) if size else shape)
                exact[number] += same
                other[number] += wide and not same
            if (place.file, place.name, place.part) not in counted:
                counted.add((place.file, place.name, place.part))
                match.matched += 1
                match.axes += len(stored) == len(shape)
    match.exact, match.other = max(exact), min(other)
    return match


_Names = Mapping[str, tuple[CheckpointFile, Tensor]]


class _FileGroup(NamedTuple):
    """Files that hold a component together: the shards of one variant.

    Args:
        folder: whether they lie in the component's own folder.
        lines: the names of the tensors, each after a line break.
    """

    folder: bool
    names: _Names
    lines: str


class _FileGroups:
    """The files of a checkpoint in groups, each read once for all families."""

    def __init__(self, files: CheckpointFiles) -> None:
        together: dict[tuple[str, str], list[CheckpointFile]] = {}
        for file in files.weights:  # shards belong together, variants (fp16, …) are apart
            variant = _SHARD.sub("", file.relative.name)
            together.setdefault((file.component, variant), []).append(file)
        self._groups: dict[str, list[_FileGroup]] = {}
        for (component, _), those in together.items():
            names = {name: (f, t) for f in those for name, t in f.weights().items()}
            group = _FileGroup(bool(component), names, "\n" + "\n".join(names))
            self._groups.setdefault(component, []).append(group)

    def of(self, component: Component) -> list[_FileGroup]:
        """Return the groups that may hold a component."""
        alone = () if component.second_of else self._groups.get("", ())
        return [*self._groups.get(component.name, ()), *alone]


class _Stored(NamedTuple):
    """A component in a group of files.

    Args:
        hits: how many of its parameters the names show.
    """

    component: Component
    spelling: Spelling
    names: _Names
    hits: int


def _stored_components(family: Family, groups: _FileGroups) -> Iterator[_Stored]:
    """Yield the components that the files hold, each variant with its spelling and its tensors."""
    for component in family.components:
        for group in groups.of(component):
            found = _best_spelling(family, component, group)
            if found is not None:
                count, spelling = found
                yield _Stored(component, spelling, group.names, count)


def _places(
    component: Component, spelling: Spelling, names: _Names
) -> Iterator[tuple[Module, Parameter, Place]]:
    """Yield the stored parameters of a component with their places."""
    for module, parameter, slot in spelling.slots(component):
        stored = names.get(slot.tensor)
        if stored is not None:
            name, part, parts, transposed, span, swapped = slot
            file, tensor = stored
            if isinstance(tensor, Window):
                if parts > 1:
                    continue
                part, parts, tensor = tensor.part, tensor.parts, tensor.whole
            name = tensor.home if isinstance(tensor, Composed) else name
            place = Place(file, tensor, name, part, parts, transposed, span, swapped)
            yield module, parameter, place


def _best_spelling(
    family: Family, component: Component, group: _FileGroup
) -> tuple[int, Spelling] | None:
    """Return the spelling that finds most of a component and how much, if it finds enough."""
    best: tuple[int, Spelling] | None = None
    for spelling in family.spellings[component.name]:
        if group.folder and (spelling.layout != "diffusers" or spelling.prefix):
            continue
        if f"\n{spelling.prefix}" not in group.lines:
            continue
        tensors = spelling.tensors(component)
        count = sum(map(group.names.__contains__, tensors))
        if count < _SHARE * len(tensors) or (best is not None and count <= best[0]):
            continue
        if component.name not in _NETWORKS or _names_most(family, spelling, tensors, group.names):
            best = (count, spelling)
    return best


def _names_most(
    family: Family, spelling: Spelling, tensors: Iterable[str], names: Mapping[str, Any]
) -> bool:
    """Return whether a spelling names most weights of the network of which it names some."""
    known = {name for name in tensors if name in names}
    others = tuple({s.prefix for found in family.spellings.values() for s in found} - {""})
    own = [
        name
        for name in names
        if name.startswith(spelling.prefix)
        and name.endswith((".weight", ".bias"))
        and sort_of(name, "") == "weight"
        and (spelling.prefix or not name.startswith(others))
    ]
    return len(known.intersection(own)) >= _NAMED * len(own)
