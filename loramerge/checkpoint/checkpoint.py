"""A base: its family, and for every module the tensors (and rows) that hold it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from loramerge.checkpoint.composed import Composed, Window
from loramerge.checkpoint.files import CheckpointFile, CheckpointFiles, find_files
from loramerge.checkpoint.generic import model_class, named_tensors, network_tensors
from loramerge.checkpoint.language import gguf_modules
from loramerge.checkpoint.naming import NETWORK
from loramerge.checkpoint.storage import HeldTensor
from loramerge.checkpoint.storages import held
from loramerge.errors import FamilyError, FormatError
from loramerge.families import FAMILIES, UNETS, Component, Family, Module, Parameter, Spelling
from loramerge.families.beside import sort_of
from loramerge.files.dtypes import is_float
from loramerge.files.tensors import Tensor

__all__ = ["Checkpoint", "Place", "open_checkpoint"]

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


class Place(NamedTuple):
    """The place of a parameter in a tensor of a file; see `families.Slot`.

    Args:
        heads: number of heads of which the two halves of the rows alternate in the tensor; 0 for none.
    """

    file: CheckpointFile
    tensor: Tensor
    name: str
    part: int = 0
    parts: int = 1
    transposed: bool = False
    span: int = 1
    swapped: bool = False
    heads: int = 0

    @property
    def rows(self) -> tuple[int, int]:
        """First and last-plus-one row of the stored tensor."""
        height = self.tensor.shape[0] // self.parts
        return self.part * height, (self.part + self.span) * height

    @property
    def pieces(self) -> tuple[tuple[int, int, int], ...]:
        """Ranges of stored rows as (first, last plus one, row of the parameter it begins at).

        Rows of heads whose halves alternate count as they are stored.
        """
        start, stop = self.rows
        if not self.swapped:
            return ((start, stop, 0),)
        half = (stop - start) // 2
        return ((start, start + half, half), (start + half, stop, 0))

    @property
    def head(self) -> int:
        """Rows of a head, where the halves of heads alternate."""
        start, stop = self.rows
        return (stop - start) // self.heads

    def whole_heads(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range of rows, of the parameter and of the tensor, of all heads among some rows."""
        return start - start % self.head, stop + -stop % self.head

    @property
    def held(self) -> HeldTensor | None:
        """The tensor in its storage, None if the storage is not known.

        Raises:
            FormatError: if it is known, but tensors beside it are not understood.
        """
        if isinstance(self.tensor, Composed):
            return self.tensor.held
        return held(self.file.open()[0], self.name)

    def require_held(self) -> HeldTensor:
        """Return the tensor in its storage.

        Raises:
            FormatError: if the storage is not known; see `held`.
        """
        found = self.held
        if found is None:
            raise FormatError(
                "the weights are stored in an unknown way",
                file=self.file.path,
                module=self.name,
                found=self.tensor.dtype,
            )
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter, as `(out, in, …)`."""
        if self.parts == 1 and not self.transposed:
            return self.tensor.shape
        start, stop = self.rows
        stored = (stop - start, *self.tensor.shape[1:])
        return tuple(reversed(stored)) if self.transposed else stored


@dataclass
class Checkpoint:
    """A base checkpoint, opened: headers only.

    Args:
        layouts: layout name of each component found.
        slots: (module, parameter) → places; a folder with several variants of a component has
            several.
        candidates: families that fit; more than one where nothing tells them apart, none for models of
            no known family, whose modules are matched by name.
        parts: what each candidate has of it.
    """

    path: Path
    files: CheckpointFiles
    candidates: tuple[Family, ...]
    reason: str
    layouts: dict[str, str]
    slots: dict[tuple[str, Parameter], list[Place]]
    parts: tuple[_Match, ...] = ()

    def among(self, families: Iterable[Family]) -> Checkpoint:
        """Return it as of the first of its candidates that is one of these, itself if there is none.

        A text encoder alone is of every family that has it, each with another name for it.
        """
        known = set(families)
        chosen = next((n for n, one in enumerate(self.candidates) if one in known), 0)
        if not chosen or not self.parts:
            return self
        part = self.parts[chosen]
        first = self.candidates[chosen]
        rest = tuple(one for one in self.candidates if one is not first)
        return replace(
            self, candidates=(first, *rest), layouts=part.layouts, slots=part.slots, parts=()
        )

    @property
    def family_name(self) -> str:
        """`sd21`, or `sd15 or sd21`, `transformers`, or `unknown`."""
        named = " or ".join(family.name for family in self.candidates)
        return named or ("unknown" if self.is_unknown else "transformers")

    @property
    def is_unknown(self) -> bool:
        """True if it is a model of no known family, and none of transformers."""
        return not self.candidates and self.layouts.keys() != {"model"}

    def require_known(self) -> Checkpoint:
        """Return it, or refuse it where the tables of a family are needed.

        Raises:
            FamilyError: if no known family fits.
        """
        if self.is_unknown:
            raise FamilyError(
                "the checkpoint belongs to no known family",
                file=self.path,
                expected=", ".join(FAMILIES),
                found=_first_names(self.files),
                hint="`loramerge families` lists the known ones",
            )
        return self

    @property
    def size(self) -> int:
        """Bytes of all weight files."""
        return sum(file.path.stat().st_size for file in self.files.weights)


def open_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """Open a base of any known layout.

    Raises:
        MissingFile, CorruptFile, UnsafeFile: as the files are.
        FamilyError: if the names are those of an adapter, or of nothing that can be baked into.
    """
    files = find_files(Path(path))
    model = model_class(Path(path))
    found = _matching(files) if model is None or model in _encoder_classes() else []
    if not found and model is not None:
        named = named_tensors(files)
        slots = {key: [Place(*where)] for key, where in named.items()}
        reason = "a model of transformers, by the names of its modules"
        return Checkpoint(Path(path), files, (), reason, {"model": "transformers"}, slots)
    if not found and (modules := gguf_modules(files)):
        slots = {key: [Place(*where[:3], heads=where[3])] for key, where in modules.items()}
        reason = "a language model in llama.cpp's names"
        return Checkpoint(Path(path), files, (), reason, {"model": "llama.cpp"}, slots)
    if not found and (places := network_tensors(files)):
        slots = {key: [Place(*where) for where in found] for key, found in places.items()}
        reason = "no known family has its modules, which are matched by name"
        layouts = {file.component or NETWORK: "by name" for file in files.weights}
        return Checkpoint(Path(path), files, (), reason, layouts, slots)
    if not found:
        raise FamilyError(
            "these are not the weights of a model",
            file=path,
            expected="tensors that end in .weight, and none of an adapter",
            found=_first_names(files),
            hint="`loramerge families` lists the families whose layouts are known",
        )
    best = max(score for score, _, _ in found)
    tied = [(family, match) for score, family, match in found if score == best]
    match = tied[0][1]
    reason = f"{match.matched} parameters match by name, {match.exact} by shape too"
    families, parts = zip(*tied, strict=True)
    return Checkpoint(Path(path), files, families, reason, match.layouts, match.slots, parts)


def _encoder_classes() -> set[str]:
    """Return the classes of transformers that are text encoders of families, and nothing else."""
    return {
        name
        for family in FAMILIES.values()
        for component, name in family.classes.items()
        if component.startswith("text_encoder") and "For" not in name
    }


_Found = tuple[tuple[int, int, int], Family, "_Match"]


def _matching(files: CheckpointFiles) -> list[_Found]:
    """Return the families that a checkpoint may be of, with the parts of each that it has.

    Families that could not match as many parameters as one that fits are left out. Tables of
    transformers are not made for a UNet. Families of other packages are asked only if no shipped
    family has all shapes.
    """
    names = "\n".join(name for file in files.weights for name in file.weights())
    groups = _FileGroups(files)

    def among(families: Iterable[Family]) -> list[_Found]:
        parts = {f: list(_stored_components(f, groups)) for f in families if f.occurs_in(names)}
        most = {family: sum(part.hits for part in those) for family, those in parts.items()}
        found: dict[Family, _Found] = {}
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


def _first_names(files: CheckpointFiles) -> str:
    tensors, _ = files.weights[0].open()
    return ", ".join(list(tensors)[:3]) or "no tensors"


@dataclass
class _Match:
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


def _match(family: Family, parts: Iterable[_Stored]) -> _Match:
    """Search every parameter of a family in the components that are stored.

    A tensor that two components could be (a lone text encoder) counts once.
    """
    match = _Match(0, 0, 0, {}, {})
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
