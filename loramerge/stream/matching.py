"""Match the deltas of an adapter to the places in a base where their modules' weights are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from loramerge.adapter import Adapter, Delta, Site
from loramerge.adapter.formats.peft_bases import MAPPING
from loramerge.adapter.load import load
from loramerge.adapter.opaque import flat_name
from loramerge.checkpoint import Checkpoint, Place
from loramerge.checkpoint.generic import model_class, named_tensors
from loramerge.checkpoint.naming import renaming
from loramerge.errors import AdapterError, FamilyError
from loramerge.families import Parameter
from loramerge.stream.heads import with_heads
from loramerge.stream.reading import Stretch

__all__ = [
    "Part",
    "PlacesOf",
    "finder_of",
    "for_base",
    "matched_by_name",
    "parts_of",
    "require_family",
]

# module, parameter and its shape in the adapter → places in the base
PlacesOf = Callable[[str, Parameter, tuple[int, ...]], Sequence[Place]]


def for_base(adapter: Adapter, checkpoint: Checkpoint) -> Adapter:
    """Return an adapter as a base knows its modules, or refuse one that is for another.

    An adapter and a base that agree on names and shapes belong together, whether a family knows them or
    not: for a base of no known family the names in the file count, also where they look like a family's.

    Raises:
        FamilyError: for an adapter of another family than the base's, and for a base of a read-only
            family, with the reason.
    """
    adapter = with_heads(adapter, checkpoint)
    named = checkpoint.is_unknown or _is_without_own_layers(adapter, checkpoint)
    if named and adapter.info.detection.candidates:
        if isinstance(adapter.maker, Path):  # as it was read
            return load(adapter.maker, by_name=True)
        raise _of_another_family(adapter, checkpoint)
    require_family(adapter, checkpoint)
    return adapter


def _is_without_own_layers(adapter: Adapter, checkpoint: Checkpoint) -> bool:
    """Return whether a base is a model of transformers after which an adapter's family is made.

    Qwen3-VL is HiDream O1 without three layers, and nothing else tells their adapters apart.
    """
    if checkpoint.candidates or not adapter.info.detection.candidates:
        return False
    known = {family.classes.get("transformer") for family in adapter.info.detection.candidates}
    return model_class(checkpoint.path) in known - {None}


def require_family(adapter: Adapter, checkpoint: Checkpoint) -> None:
    """Refuse an adapter that is not for a base.

    Raises:
        FamilyError: see `for_base`.
    """
    read_only = next((f.name for f in checkpoint.candidates[:1] if not f.proven), None)
    if read_only is not None:
        raise FamilyError(
            f"bases of the family {read_only} are read-only: the layout of their files is not verified",
            file=checkpoint.path,
            hint="load the adapter beside the base; its adapters can be inspected, mixed and resized",
        )
    candidates = adapter.info.detection.candidates
    if not candidates and not checkpoint.candidates:
        return  # modules are matched by name
    if any(family.title in adapter.info.detection.twins for family in checkpoint.candidates):
        return  # the base says which of the twins it is
    if not checkpoint.candidates and _names_no_model(adapter):
        model = model_class(checkpoint.path) or "CLASS"
        mapping = (
            f'"{MAPPING}": {{"base_model_class": "{model}", "parent_library": "transformers"}}'
        )
        raise FamilyError(
            "the adapter's configuration does not name the model that it is for, and text encoders of "
            "diffusion models have modules of the same names",
            file=adapter.label,
            expected=f"{MAPPING} in adapter_config.json, because the base {checkpoint.path.name} is a "
            f"{model}, and diffusion models have none",
            found=f"no {MAPPING}; by its names the adapter is of {_family(adapter)}",
            hint=f"if it was trained on this base, write {mapping} into its adapter_config.json",
        )
    if not any(family in checkpoint.candidates for family in candidates):
        if not candidates and _fits_by_name(adapter, checkpoint):
            return
        raise _of_another_family(adapter, checkpoint)


def _of_another_family(adapter: Adapter, checkpoint: Checkpoint) -> FamilyError:
    return FamilyError(
        "the adapter and the base belong to different families",
        file=adapter.label,
        expected=f"an adapter of the family {checkpoint.family_name}, because the base "
        f"{checkpoint.path.name} belongs to it ({checkpoint.reason})",
        found=f"an adapter of {_family(adapter)} ({adapter.info.detection.reason})",
        hint="choose a base of the adapter's family",
    )


def _fits_by_name(adapter: Adapter, checkpoint: Checkpoint) -> bool:
    """Return whether a base has every module of an adapter of no known family, in the same shape."""
    find = finder_of(adapter, checkpoint)
    parts = [
        (part, delta)
        for site, delta in adapter.deltas.items()
        for part in parts_of(adapter, site, delta, find)
    ]
    return all(
        part.places and all(part.fits(delta, place.shape) for place in part.places)
        for part, delta in parts
    )


def matched_by_name(adapter: Adapter, checkpoint: Checkpoint) -> str | None:
    """Return what was matched where no family says it, None where one does."""
    if not checkpoint.is_unknown and adapter.info.detection.candidates:
        return None
    if not checkpoint.candidates and not checkpoint.is_unknown:
        return None
    find = finder_of(adapter, checkpoint)
    pairs = [
        (site.modules[0], places[0].name)
        for site, delta in adapter.deltas.items()
        if (places := find(site.modules[0], site.parameter, delta.shape))
    ]
    if not pairs:
        return None
    whose = "base" if checkpoint.is_unknown else "adapter"
    return (
        f"the family of the {whose} is unknown: {len(pairs)} of {len(adapter.deltas)} modules of "
        f"{adapter.label} are matched by name, such as {pairs[0][0]} with {pairs[0][1]}"
    )


def _names_no_model(adapter: Adapter) -> bool:
    """Return whether the names alone of an adapter in PEFT's format make it one of text encoders."""
    encoders = all(name.startswith("text_encoder") for name in adapter.components())
    configs = adapter.info.configs.values()
    return encoders and bool(configs) and not any(config.get(MAPPING) for config in configs)


def _family(adapter: Adapter) -> str:
    name = adapter.info.detection.name
    return f"the family {name}" if name else "an unknown family"


@dataclass(frozen=True)
class Part:
    """One module's part of a delta, and the places of the module's weight in the base.

    Args:
        site: the module, alone.
        start, stop: rows of the delta.
        stretches: for each place, where the weight of the whole delta is stored.
        alone: whether the delta is that of this module only.
        height: rows of the whole delta.
    """

    site: Site
    start: int
    stop: int
    places: Sequence[Place]
    stretches: Sequence[tuple[Stretch, ...]]
    alone: bool
    height: int

    def fits(self, delta: Delta, shape: tuple[int, ...]) -> bool:
        """Return whether a weight of a shape can be changed by this part of the delta."""
        if self.alone:
            return delta.fits(shape)
        return shape[0] == self.stop - self.start and delta.fits((self.height, *shape[1:]))

    def at(self, delta: Delta, shape: tuple[int, ...]) -> Delta:
        """Return the delta, to which a weight of a shape tells what the file does not."""
        return delta.at(shape if self.alone else (self.height, *shape[1:]))

    def shape(self, delta: Delta) -> list[int]:
        """Return the shape of this part of the delta, for errors."""
        return [self.stop - self.start, *delta.shape[1:]]

    def widens(self, delta: Delta, shape: tuple[int, ...]) -> bool:
        """Return whether the delta differs from a weight only by having more inputs."""
        rows, *rest = self.shape(delta)
        return rows == shape[0] and rest[1:] == [*shape[2:]] and rest[:1] > [*shape[1:2]]


def parts_of(adapter: Adapter, site: Site, delta: Delta, places_of: PlacesOf) -> Iterator[Part]:
    """Yield the part of every module of a site.

    Raises:
        AdapterError: if the delta needs the weights of all its modules, and the base has only some.
    """
    rows = pairwise(site.bounds(delta.shape[0]))
    found = [
        places_of(module, site.parameter, (stop - start, *delta.shape[1:]))
        for module, (start, stop) in zip(site.modules, rows, strict=True)
    ]
    bounds = site.bounds(delta.shape[0] or _height(site, found))
    if delta.needs_base and not all(found) and any(found):
        _require_rows_apart(adapter, site, delta, bounds)
    alone = len(site.modules) == 1
    for module, places, (start, stop) in zip(site.modules, found, pairwise(bounds), strict=True):
        own = Site((module,), site.parameter)
        stretches = [_stretches(found, bounds, number) for number in range(len(places))]
        yield Part(own, start, stop, places, stretches, alone, bounds[-1])


def finder_of(adapter: Adapter, checkpoint: Checkpoint) -> PlacesOf:
    """Return the function that finds the places of a parameter of the adapter in the base."""
    if checkpoint.candidates:
        named = _by_flat_name(checkpoint) if adapter.info.stems else {}

        def find_known(module: str, parameter: Parameter, _: tuple[int, ...]) -> Sequence[Place]:
            places = checkpoint.slots.get((module, parameter), ())
            if places or module not in adapter.info.stems:
                return places
            return named.get((flat_name(module), parameter), ())

        return find_known
    modules = [module for site in adapter.deltas for module in site.modules]
    renamed = renaming(modules, (module for module, _ in checkpoint.slots))
    flipped = any(config.get("fan_in_fan_out") for config in adapter.info.configs.values())

    def find(module: str, parameter: Parameter, shape: tuple[int, ...]) -> Sequence[Place]:
        places = checkpoint.slots.get((renamed(module), parameter), ())
        return [_oriented(place, shape, flipped=flipped) for place in places]

    return find


def _by_flat_name(checkpoint: Checkpoint) -> Mapping[tuple[str, Parameter], Sequence[Place]]:
    """Return the places of tensors that the family does not know, by their names.

    If two names differ only in dots and underscores, neither matches.
    """
    found: dict[tuple[str, Parameter], list[Place]] = {}
    for (module, parameter), (file, tensor, name) in named_tensors(checkpoint.files).items():
        if not file.component.startswith("text_encoder"):
            place = Place(file, tensor, name)
            found.setdefault((flat_name(module), parameter), []).append(place)
    return {key: places for key, places in found.items() if len(places) == 1}


def _oriented(place: Place, shape: tuple[int, ...], *, flipped: bool) -> Place:
    """Return a place of a matrix, transposed if its layer stores it transposed.

    Args:
        flipped: set by the adapter (`fan_in_fan_out`, for the Conv1D of GPT-2); if the shape allows
            only one way, that is taken.
    """
    turned = place._replace(transposed=True)
    fits, fits_turned = place.shape == shape, len(shape) == 2 and turned.shape == shape
    return turned if fits_turned and (flipped or not fits) else place


def _height(site: Site, found: Sequence[Sequence[Place]]) -> int:
    """Return the number of rows of a site's weight in the base; 0 if it lacks the weight."""
    units = [
        places[0].shape[0] // span
        for places, span in zip(found, site.spans or (1,), strict=True)
        if places
    ]
    return units[0] * sum(site.spans or (1,)) if units else 0


def _require_rows_apart(adapter: Adapter, site: Site, delta: Delta, bounds: Sequence[int]) -> None:
    """Refuse a delta that needs the weights of all its modules where the base has only some.

    Raises:
        AdapterError: naming the site.
    """
    if not delta.splits_exactly(bounds):
        raise AdapterError(
            f"a {delta.kind} delta of several modules needs the weights of all of them, and the "
            "base lacks some",
            file=adapter.info.path,
            module=site.name,
            hint="give the base the adapter was trained on",
        )


def _stretches(
    found: Sequence[Sequence[Place]], bounds: Sequence[int], number: int
) -> tuple[Stretch, ...]:
    """Return the places of a site's weight, in one of its variants."""
    return tuple(
        (start, places[min(number, len(places) - 1)])
        for places, start in zip(found, bounds, strict=False)
        if places
    )
