"""What a bake will do: which rows of which tensors change, and by which deltas.

Made from headers alone, and refused here if it cannot be done; nothing is read or written yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from loramerge.adapter import Adapter, Delta, Site
from loramerge.algebra.terms import naming
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import Checkpoint, CheckpointFile, Place
from loramerge.checkpoint.generic import renaming
from loramerge.checkpoint.storage import Held
from loramerge.checkpoint.storages import STORAGES, quantised_by
from loramerge.errors import (
    AdapterError,
    FamilyError,
    FormatError,
    ShapeError,
    UsageError,
    listed,
)
from loramerge.families import Parameter
from loramerge.files.dtypes import DTYPES, FLOATS
from loramerge.stream.reading import Stretch

__all__ = ["BakePlan", "Edit", "plan_bake", "require_family"]


@dataclass(frozen=True)
class Edit:
    """What happens to one module's rows of one tensor: the deltas of all adapters, weighted.

    Args:
        site: the module, alone.
        offsets: for each delta, the row at which the module's begin (0 but for fused deltas).
        stretches: for each delta, where the weight it lies on is stored.
    """

    site: Site
    place: Place
    deltas: tuple[Delta, ...]
    offsets: tuple[int, ...]
    stretches: tuple[tuple[Stretch, ...], ...]


@dataclass
class BakePlan:
    """What a bake will do; made from headers alone.

    Args:
        edits: tensor → what is added to it, by file.
        skipped: names of adapter modules that the base lacks and that were allowed to be left out.
        dtype: safetensors name of a type that all floating tensors shall have, or None.
        notes: what will not come out as it went in, in words.
    """

    checkpoint: Checkpoint
    edits: dict[CheckpointFile, dict[str, list[Edit]]]
    skipped: list[str]
    dtype: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def modules(self) -> list[str]:
        """Names of all sites that change, each once."""
        names = (e.site.name for f in self.edits.values() for es in f.values() for e in es)
        return list(dict.fromkeys(names))

    @property
    def tensors(self) -> int:
        """Number of tensors that change."""
        return sum(len(tensors) for tensors in self.edits.values())


def plan_bake(
    checkpoint: Checkpoint,
    inputs: Sequence[tuple[Adapter, Weight]],
    *,
    skip_missing: Sequence[str] = (),
    dtype: str | None = None,
) -> BakePlan:
    """Match adapters to a base and say what will change.

    Args:
        skip_missing: components whose missing modules may be left out, or `all`.
        dtype: safetensors name of a type that all floating tensors shall have.

    Raises:
        FamilyError: if an adapter belongs to another family.
        AdapterError: if the base lacks modules of an adapter, or some of those that a delta stored for
            several needs all of.
        UnsupportedKind: if an adapter holds a kind that this version cannot compute with.
        FormatError: if the base stores modules of an adapter as integers, or with scales that are not
            understood.
        ShapeError: listing the modules whose shapes differ.
    """
    edits: dict[CheckpointFile, dict[str, dict[tuple[Site, int], _Planned]]] = {}
    missing: dict[str, list[str]] = {}
    misfits: list[str] = []
    wider = 0  # of them: with more inputs than the base's
    quantised: list[str] = []
    for adapter, weight in inputs:
        adapter.require_sound()
        require_family(adapter, checkpoint)
        of = weight.on(adapter)
        places_of = _finder(adapter, checkpoint)
        for site, delta in adapter.deltas.items():
            w = of(site)
            if w == 0.0:
                continue
            with naming(site, adapter.info.path):
                if not delta.computable:
                    delta.dense()  # refuses
                scaled = delta if w == 1.0 else delta.scaled(w)
            rows = pairwise(site.bounds(delta.shape[0]))
            found = [
                places_of(module, site.parameter, (stop - start, *delta.shape[1:]))
                for module, (start, stop) in zip(site.modules, rows, strict=True)
            ]
            bounds = site.bounds(delta.shape[0] or _height(site, found))
            if delta.needs_base and not all(found) and any(found):
                _require_rows_apart(adapter, site, delta, bounds)
            for places, module, start in zip(found, site.modules, bounds, strict=False):
                own = Site((module,), site.parameter)
                if not places and delta.optional:
                    continue
                if not places:
                    missing.setdefault(site.component, []).append(own.name)
                    continue
                for number, place in enumerate(places):
                    with naming(site, str(place.file.path)):
                        held = place.held
                    if held is None:
                        sort = quantised_by(place.file.open()[0], place.name)
                        quantised.append(f"{place.name} ({sort})")
                        continue
                    with naming(site, str(place.file.path)):
                        _check_beside(place, held, checkpoint, dtype)
                    if not _fits(site, delta, module, place.shape, bounds):
                        misfits.append(
                            f"{own.name}: base {list(place.shape)}, adapter "
                            f"{_shape_of(site, delta, module, bounds)}"
                        )
                        wider += _is_wider(site, delta, module, place.shape, bounds)
                        continue
                    tensors = edits.setdefault(place.file, {})
                    entry = tensors.setdefault(place.name, {}).setdefault(
                        (own, place.part), _Planned(place)
                    )
                    entry.deltas.append(scaled)
                    entry.offsets.append(start)
                    entry.stretches.append(_stretches(found, bounds, number))
    if quantised:
        raise FormatError(
            f"{len(quantised)} tensors of the base are quantised and cannot be baked into",
            file=checkpoint.path,
            module=listed(quantised, 4),
            expected=", ".join(DTYPES[name].word for name in FLOATS),
            hint="bake into the base it was made from, then quantise that; or load the adapter "
            "beside the base",
        )
    if misfits:
        raise ShapeError(
            f"{len(misfits)} modules of the adapter do not have the base's shapes",
            file=checkpoint.path,
            module=listed(misfits, 4),
            hint="the adapter widens this layer (a control adapter, as of Flux.1 Canny and Depth, whose "
            "programs widen the base with zeros while they load it): load it beside the base, or bake "
            "the rest: convert --drop " + misfits[0].partition(":")[0]
            if wider == len(misfits)
            else "the adapter was trained on a base of another size or family",
        )
    skipped = _require_modules(missing, skip_missing, checkpoint)
    fixed = None if dtype is None else _fixed(checkpoint)
    if fixed is not None:
        raise FormatError(
            f"a {fixed} base with scales cannot be given another type",
            file=checkpoint.path,
            hint="leave --dtype out, or bake into the base it was made from",
        )
    ready = {
        file: {
            name: [
                Edit(site, p.place, tuple(p.deltas), tuple(p.offsets), tuple(p.stretches))
                for (site, _), p in e.items()
            ]
            for name, e in tensors.items()
        }
        for file, tensors in edits.items()
    }
    if not ready and dtype is None:
        raise UsageError("nothing would change: all weights are 0 or all modules were skipped")
    return BakePlan(checkpoint, ready, skipped, dtype, list(checkpoint.files.notes))


def _finder(
    adapter: Adapter, checkpoint: Checkpoint
) -> Callable[[str, Parameter, tuple[int, ...]], Sequence[Place]]:
    """Return the function that gives where a parameter of the adapter lies in the base."""
    if checkpoint.candidates:
        return lambda module, parameter, _: checkpoint.slots.get((module, parameter), ())
    modules = [module for site in adapter.deltas for module in site.modules]
    renamed = renaming(modules, (module for module, _ in checkpoint.slots))
    flipped = any(config.get("fan_in_fan_out") for config in adapter.info.configs.values())

    def find(module: str, parameter: Parameter, shape: tuple[int, ...]) -> Sequence[Place]:
        places = checkpoint.slots.get((renamed(module), parameter), ())
        return [_oriented(place, shape, flipped=flipped) for place in places]

    return find


def _oriented(place: Place, shape: tuple[int, ...], *, flipped: bool) -> Place:
    """Return a place of a matrix, transposed where it is that of a layer that stores it so.

    Args:
        flipped: the adapter says so (`fan_in_fan_out`, for the Conv1D of GPT-2); where the shape
            allows just one way, that counts.
    """
    turned = place._replace(transposed=True)
    fits, fits_turned = place.shape == shape, len(shape) == 2 and turned.shape == shape
    return turned if fits_turned and (flipped or not fits) else place


@dataclass
class _Planned:
    """An edit as it grows, adapter by adapter."""

    place: Place
    deltas: list[Delta] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    stretches: list[tuple[Stretch, ...]] = field(default_factory=list)


def _height(site: Site, found: Sequence[Sequence[Place]]) -> int:
    """Return the rows of a site's weight as the base has them; 0 where it has none of it."""
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
    """Return where a site's weight is stored; of several variants of it, that of a number."""
    return tuple(
        (start, places[min(number, len(places) - 1)])
        for places, start in zip(found, bounds, strict=False)
        if places
    )


def _fits(
    site: Site, delta: Delta, module: str, shape: tuple[int, ...], bounds: Sequence[int]
) -> bool:
    """Say whether a module's weight of a shape can be changed by its part of a delta."""
    if len(site.modules) == 1:
        return delta.fits(shape)
    index = site.modules.index(module)
    height = bounds[index + 1] - bounds[index]
    return shape[0] == height and delta.fits((bounds[-1], *shape[1:]))


def _is_wider(
    site: Site, delta: Delta, module: str, shape: tuple[int, ...], bounds: Sequence[int]
) -> bool:
    """Say whether a delta differs from a module's weight by more inputs alone."""
    rows, *rest = _shape_of(site, delta, module, bounds)
    return rows == shape[0] and rest[1:] == [*shape[2:]] and rest[:1] > [*shape[1:2]]


def _shape_of(site: Site, delta: Delta, module: str, bounds: Sequence[int]) -> list[int]:
    """Return the shape of a module's part of a delta, for errors."""
    index = site.modules.index(module)
    return [bounds[index + 1] - bounds[index], *delta.shape[1:]]


def _fixed(checkpoint: Checkpoint) -> str | None:
    """Return the storage that some weights have, if it keeps their type; else None."""
    return next(
        (
            storage.name
            for file in checkpoint.files.weights
            for storage in STORAGES.known()
            if storage.fixes_types(file.open()[0])
        ),
        None,
    )


def _check_beside(place: Place, held: Held, checkpoint: Checkpoint, dtype: str | None) -> None:
    """Refuse weights of which something that belongs to them lies elsewhere, or would lose its meaning.

    Raises:
        FormatError: if a scale lies in another file, or the type is to change.
    """
    if held.beside and dtype is not None:
        raise FormatError(
            "a base with scales cannot be given another type",
            found=held.beside[0],
            hint="leave --dtype out, or bake into the base it was made from",
        )
    if held.beside or len(checkpoint.files.weights) == 1:
        return
    partners = {n for s in STORAGES.known() for n in s.partners(place.tensor, place.name)}
    for file in checkpoint.files.weights if partners else ():
        if file.component == place.file.component and partners & file.open()[0].keys():
            raise FormatError(
                f"the scale of this {DTYPES[place.tensor.dtype].word} weight lies in another file",
                found=str(file.path),
                hint="join the shards into one file first",
            )


def require_family(adapter: Adapter, checkpoint: Checkpoint) -> None:
    """Refuse an adapter of another family than the base's, and a base of a read-only family.

    Raises:
        FamilyError: saying how each was told.
    """
    read_only = next((f.name for f in checkpoint.candidates[:1] if not f.proven), None)
    if read_only is not None:
        raise FamilyError(
            f"the family {read_only} is read-only: where its files store what is not verified",
            file=checkpoint.path,
            hint="adapters of it can be inspected, mixed and resized; load them beside the base",
        )
    candidates = adapter.info.detection.candidates
    if not candidates and not checkpoint.candidates:
        return  # names decide
    if not any(family in checkpoint.candidates for family in candidates):
        raise FamilyError(
            "the adapter and the base belong to different families",
            file=adapter.label,
            expected=f"an adapter of {checkpoint.family_name}, the family of {checkpoint.path.name}"
            f" ({checkpoint.reason})",
            found=f"{adapter.info.detection.name or 'an unknown family'}"
            f" ({adapter.info.detection.reason})",
            hint="choose a base of the adapter's family; weights cannot be carried across families",
        )


def _require_modules(
    missing: Mapping[str, list[str]], skip_missing: Sequence[str], checkpoint: Checkpoint
) -> list[str]:
    """Refuse modules that the base lacks, unless their component may be skipped."""
    refused = {
        component: names
        for component, names in missing.items()
        if component not in skip_missing and "all" not in skip_missing
    }
    if refused:
        count = sum(len(names) for names in refused.values())
        component = next(iter(refused)) if len(refused) == 1 else "all"
        raise AdapterError(
            f"the base lacks {count} modules of the adapter",
            file=checkpoint.path,
            module=listed([name for names in refused.values() for name in names], 6),
            found=f"the base has {', '.join(checkpoint.layouts) or 'nothing known'}",
            hint=f"--skip-missing {component} bakes the rest",
        )
    return [name for names in missing.values() for name in names]
