"""Pair the tensors of checkpoints of one family, whatever their layouts.

The first checkpoint decides the layout of a result. For the rows of each of its tensors this says where
every other checkpoint stores the same parameter: by the family's tables, else by the tensor's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from loramerge.adapter import Site
from loramerge.algebra.terms import naming
from loramerge.checkpoint import Checkpoint, CheckpointFile, Place
from loramerge.checkpoint.storages import held, quantised_by
from loramerge.errors import FamilyError, FormatError, ShapeError, listed
from loramerge.families import Parameter
from loramerge.families.beside import Sort, sort_of
from loramerge.files.dtypes import PACKED, is_float
from loramerge.stream.sharing import tied

__all__ = [
    "Counterparts", "PairedTensors", "counterparts", "named", "pair", "plain_shape",
    "require_one_family", "scales_of",
]  # fmt: skip

_CODES = ("I8", "U8")  # types of whole numbers that weights are quantised to


@dataclass(frozen=True)
class Counterparts:
    """One parameter: where each checkpoint stores it.

    Args:
        site: the module, alone; for a tensor that the family does not know, its name.
        places: one for each checkpoint, None where it lacks the parameter.
        held: where a checkpoint that gives the layout alone stores it.
    """

    site: Site
    places: tuple[Place | None, ...]
    held: Place | None = None

    @property
    def first(self) -> Place:
        """The place in the first checkpoint that has it."""
        return next(place for place in self.places if place is not None)

    @property
    def target(self) -> Place:
        """The place whose rows and type the result has."""
        return self.held or self.first


@dataclass
class PairedTensors:
    """The tensors of several checkpoints, paired.

    Args:
        parts: for each file of the first checkpoint, tensor → its parts in the order of their rows.
        averages: names of tensors that hold running averages of weights.
        copied: sort → tensors of the first checkpoint that are neither weights nor averages.
        missing: number of a checkpoint → names of tensors that the first has and it lacks.
        extra: number of a checkpoint → its tensors of weights that the first lacks, by name.
    """

    checkpoints: Sequence[Checkpoint]
    parts: dict[CheckpointFile, dict[str, list[Counterparts]]] = field(default_factory=dict)
    averages: list[str] = field(default_factory=list)
    copied: dict[str, list[str]] = field(default_factory=dict)
    missing: dict[int, list[str]] = field(default_factory=dict)
    extra: dict[int, dict[str, CheckpointFile]] = field(default_factory=dict)

    def all_parts(self) -> Iterator[Counterparts]:
        """Yield every part, in the order of the bytes of the first checkpoint."""
        for tensors in self.parts.values():
            for parts in tensors.values():
                yield from parts


def require_one_family(checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse checkpoints that are not of the first one's family.

    Raises:
        FamilyError: naming both.
    """
    first = checkpoints[0]
    for other in checkpoints[1:]:
        alike = any(family in first.candidates for family in other.candidates)
        if alike or not (first.candidates or other.candidates):
            continue
        raise FamilyError(
            "the checkpoints belong to different families",
            file=f"{first.path} and {other.path}",
            expected=f"the family {first.family_name} ({first.reason})",
            found=f"{other.family_name} ({other.reason})",
        )


def pair(checkpoints: Sequence[Checkpoint]) -> PairedTensors:
    """Pair the tensors of checkpoints of one family, to merge them.

    Raises:
        FormatError: if a checkpoint stores weights quantised, or with scales that are not understood.
        ShapeError: listing the tensors whose shapes differ.
    """
    found = counterparts(checkpoints, _in_one_order)
    _require_floats(found)
    _require_shapes(found)
    return found


def counterparts(
    checkpoints: Sequence[Checkpoint],
    made: Callable[[Site, tuple[Place | None, ...]], Counterparts] = Counterparts,
) -> PairedTensors:
    """Pair the tensors of checkpoints of one family, whatever their storages and shapes.

    Args:
        made: makes a parameter of its places.
    """
    found = PairedTensors(checkpoints)
    others = [_Lookup(one) for one in checkpoints[1:]]
    owned = _owned(checkpoints[0])
    for file in checkpoints[0].files.weights:
        tensors = file.open()[0]
        beside = scales_of(file)
        for name in tensors:
            sort = _sort(file, name, beside)
            if sort == "average":
                found.averages.append(name)
            elif sort != "weight" or not (_holds_numbers(file, name) or (file, name) in owned):
                found.copied.setdefault(sort if sort != "weight" else "buffer", []).append(name)
            else:
                places = owned.get((file, name)) or [_whole(file, name)]
                parts = [
                    made(site, (place, *(other.place_of(site, place) for other in others)))
                    for site, place in sorted(places, key=lambda one: one[1].rows)
                ]
                found.parts.setdefault(file, {})[name] = parts
    for number, other in enumerate(others, 1):
        lacks = [part.site.name for part in found.all_parts() if part.places[number] is None]
        if lacks:
            found.missing[number] = lacks
        if extra := other.unused():
            found.extra[number] = extra
    return found


def _in_one_order(site: Site, places: tuple[Place | None, ...]) -> Counterparts:
    """Return a parameter; where all store the rows of its heads in one order, they are merged in that.

    Raises:
        FormatError: if the first stores them alternating, and another does not.
    """
    found = [place for place in places if place is not None]
    if found[0].heads and any(place.heads != found[0].heads for place in found):
        raise FormatError(
            "the rows of this weight are stored in another order than in the first checkpoint",
            file=found[0].file.path,
            module=site.name,
            hint="give a safetensors checkpoint first, in whose layout the result is written",
        )
    if found[0].heads:
        places = tuple(place and place._replace(heads=0) for place in places)
    return Counterparts(site, places)


def plain_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without axes of length 1 at its end: a kernel of 1×1 is a matrix."""
    plain = list(shape)
    while len(plain) > 2 and plain[-1] == 1:
        plain.pop()
    return tuple(plain)


def _holds_numbers(file: CheckpointFile, name: str) -> bool:
    """Return whether a tensor holds floats, or what stands for them, that can be merged."""
    tensors = file.open()[0]
    dtype = tensors[name].dtype
    known = is_float(dtype) or dtype in PACKED
    known = known or (dtype in _CODES and held(tensors, name) is not None)
    return known and tensors[name].size > 0


Owner = tuple[CheckpointFile, str]  # a tensor: its file and its name


def _owned(checkpoint: Checkpoint) -> Mapping[Owner, list[tuple[Site, Place]]]:
    """Return the parameters that lie in each tensor, of tensors whose rows all have one owner.

    A tensor that two components could be (a lone text encoder) counts as the first's.
    """
    found: dict[Owner, dict[tuple[int, int], tuple[Site, Place]]] = {}
    for (module, parameter), places in checkpoint.slots.items():
        for place in places:
            if place.tensor.shape:
                rows = found.setdefault((place.file, place.name), {})
                rows.setdefault(place.rows, (Site((module,), parameter), place))
    return {
        owner: list(rows.values())
        for owner, rows in found.items()
        if sum(stop - start for start, stop in rows) == _height(owner)
    }


def _height(owner: Owner) -> int:
    file, name = owner
    return file.open()[0][name].shape[0]


def _whole(file: CheckpointFile, name: str) -> tuple[Site, Place]:
    """Return a tensor that the family does not know as a parameter of its own."""
    tensor = file.weights()[name]
    shaped = tensor if tensor.shape else tensor.reshaped((1,))
    return named(name, file.component), Place(file, shaped, name)


def named(name: str, component: str) -> Site:
    """Return the site of a tensor that the family does not know, by its name.

    Args:
        component: the folder of a pipeline that its file lies in, `''` for a file that holds all.
    """
    stem, _, last = name.rpartition(".")
    parameter: Parameter = "bias" if last == "bias" else "weight"
    module = stem if stem and last in ("weight", "bias") else name
    return Site((f"{component}.{module}" if component else module,), parameter)


def _sort(file: CheckpointFile, name: str, beside: frozenset[str]) -> Sort:
    """Return what a tensor is; the scale of a quantised weight is written with that, as a buffer is."""
    return "buffer" if name in beside else sort_of(name, file.component)


def scales_of(file: CheckpointFile) -> frozenset[str]:
    """Return the names of the tensors that hold the scales of weights in a file."""
    tensors = file.open()[0]
    return frozenset(
        other
        for name, tensor in tensors.items()
        if tensor.dtype.startswith("F8") or tensor.dtype in _CODES
        for one in (held(tensors, name),)
        if one is not None
        for other in (*one.beside, *one.marks)
    )


class _Lookup:
    """Finds parameters of the first checkpoint in another."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._used: set[Owner] = set()
        self._named: dict[tuple[str, str], list[CheckpointFile]] = {}
        for file in checkpoint.files.weights:
            for name in file.names():
                self._named.setdefault((file.component, name), []).append(file)
        self._head: tuple[str, str] = ("", "")
        if not checkpoint.candidates:
            self._head = tied(checkpoint)

    def place_of(self, site: Site, target: Place) -> Place | None:
        """Return where a parameter is stored, None if nowhere.

        Args:
            target: where the first checkpoint stores it.
        """
        places = self._checkpoint.slots.get((site.modules[0], site.parameter), [])
        embedding, head = self._head
        if not places and head and site.modules[0] == head and site.parameter == "weight":
            places = self._checkpoint.slots.get((embedding, "weight"), [])  # it shares that weight
        if not places:
            files = self._named.get((target.file.component, target.name), [])
            places = [_whole(file, target.name)[1] for file in files]
        if not places:
            return None
        # of several variants of a component (fp16 beside float32) the one of the same name
        same = [p for p in places if p.file.relative.name == target.file.relative.name]
        chosen = (same or places)[0]
        self._used |= {(place.file, place.name) for place in places}
        return chosen

    def unused(self) -> dict[str, CheckpointFile]:
        """Return the tensors of weights that were not asked for, by name."""
        found = {}
        for file in self._checkpoint.files.weights:
            beside = scales_of(file)
            for name in file.names():
                if (file, name) in self._used or not _holds_numbers(file, name):
                    continue
                if _sort(file, name, beside) == "weight" and not self._is_head(name):
                    found[name] = file
        return found

    def _is_head(self, name: str) -> bool:
        """Return whether a tensor is an output layer that repeats the embedding it shares."""
        return bool(self._head[1]) and name == f"{self._head[1]}.weight"


def _require_floats(found: PairedTensors) -> None:
    """Refuse weights that are stored as integers.

    Raises:
        FormatError: listing them.
    """
    quantised: dict[str, list[str]] = {}
    for part in found.all_parts():
        for place in filter(None, part.places):
            with naming(part.site, str(place.file.path)):
                if place.held is None:
                    sort = quantised_by(place.file.open()[0], place.name)
                    names = quantised.setdefault(str(place.file.path), [])
                    names.append(f"{place.name} ({sort})")
    for file, names in quantised.items():
        raise FormatError(
            f"{len(names)} tensors are quantised and cannot be merged",
            file=file,
            module=listed(names, 4),
            hint="give the checkpoint that it was quantised from",
        )


def _require_shapes(found: PairedTensors) -> None:
    """Refuse checkpoints whose tensors differ in shape.

    Raises:
        ShapeError: listing the tensors, with both shapes.
    """
    for number, other in enumerate(found.checkpoints[1:], 1):
        misfits = [
            f"{part.site.name}: {list(part.target.shape)} and {list(place.shape)}"
            for part in found.all_parts()
            if (place := part.places[number]) is not None
            and plain_shape(place.shape) != plain_shape(part.target.shape)
        ]
        if misfits:
            raise ShapeError(
                f"{len(misfits)} tensors of the checkpoints differ in shape",
                file=f"{found.checkpoints[0].path} and {other.path}",
                module=listed(misfits, 4),
                hint="merge checkpoints of one architecture; an inpainting model reads more channels "
                "than others",
            )
