"""The plan of a bake: which rows of which tensors change, and by which deltas.

A plan is made from headers alone, and refused if it cannot be carried out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loramerge.adapter import Adapter, Delta, Site
from loramerge.algebra.terms import naming
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import Checkpoint, CheckpointFile, Place
from loramerge.checkpoint.storage import HeldTensor
from loramerge.checkpoint.storages import STORAGES, quantised_by
from loramerge.errors import (
    AdapterError,
    FormatError,
    Message,
    Setting,
    ShapeError,
    UsageError,
    listed,
)
from loramerge.families.components import COMPONENT_WORDS
from loramerge.files.dtypes import DTYPES, FLOATS
from loramerge.stream.experts import experts_apart
from loramerge.stream.matching import Part, finder_of, parts_of, require_family
from loramerge.stream.reading import Stretch
from loramerge.stream.vocabulary import adapted

__all__ = ["BakePlan", "Edit", "plan_bake", "require_changeable"]


@dataclass(frozen=True)
class Edit:
    """A change of one module's rows of one tensor: the weighted deltas of all adapters.

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
    """The changes that a bake makes, tensor by tensor; made from headers alone.

    Args:
        edits: tensor → what is added to it, by file.
        skipped: names of adapter modules that the base lacks and that were allowed to be left out.
        dtype: safetensors name of a type that all floating tensors shall have, or None.
        notes: files that will not come out as they went in, in words.
        config: fields of a language model's configuration that change.
        warnings: weights that adapters bring along, and that differ from the base's, in words.
    """

    checkpoint: Checkpoint
    edits: dict[CheckpointFile, dict[str, list[Edit]]]
    skipped: list[str]
    dtype: str | None = None
    notes: list[str] = field(default_factory=list)
    config: Mapping[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def all_edits(self) -> Iterator[tuple[CheckpointFile, str, Edit]]:
        """Yield every edit with its file and the name of its tensor."""
        for file, tensors in self.edits.items():
            for name, edits in tensors.items():
                yield from ((file, name, edit) for edit in edits)

    @property
    def modules(self) -> list[str]:
        """Names of all sites that change, each once."""
        return list(dict.fromkeys(edit.site.name for *_, edit in self.all_edits()))

    @property
    def dtypes(self) -> list[str]:
        """Types of the tensors that change, as users name them, after the bake."""
        stored = {self.dtype or edit.place.tensor.dtype for *_, edit in self.all_edits()}
        return sorted(DTYPES[dtype].word for dtype in stored)

    @property
    def scaled(self) -> bool:
        """True if any tensor that changes has a scale beside it."""
        return any(bool(edit.place.require_held().beside) for *_, edit in self.all_edits())

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
    """Match adapters to a base, and plan what changes in it.

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
    for adapter, _ in inputs:
        adapter.require_sound()
        require_family(adapter, checkpoint)
    if not checkpoint.candidates:
        inputs = [(experts_apart(adapter, checkpoint), weight) for adapter, weight in inputs]
    base = adapted(checkpoint, inputs)
    checkpoint = base.checkpoint
    matches = _Matches(checkpoint)
    for adapter, weight in base.inputs:
        _match(adapter, weight, matches)
    _require_floats(matches)
    _require_shapes(matches)
    skipped = _require_modules(matches.missing, skip_missing, checkpoint)
    if dtype is not None:
        require_changeable(checkpoint)
    edits = matches.edits()
    if not edits and dtype is None and not base.notes and not base.warnings:
        raise UsageError("nothing would change: all weights are 0 or all modules were skipped")
    notes = [*checkpoint.files.notes, *base.notes]
    return BakePlan(checkpoint, edits, skipped, dtype, notes, base.config, [*base.warnings])


def _match(adapter: Adapter, weight: Weight, matches: _Matches) -> None:
    """Match every delta of an adapter, times its weight, to the places of its modules."""
    weight_of = weight.on(adapter)
    places_of = finder_of(adapter, matches.checkpoint)
    for site, delta in adapter.deltas.items():
        factor = weight_of(site)
        if factor == 0.0:
            continue
        with naming(site, adapter.info.path):
            if not delta.facts.computable:
                delta.dense()  # refuses
            scaled = delta if factor == 1.0 else delta.scaled(factor)
        for part in parts_of(adapter, site, delta, places_of):
            if part.places:
                matches.add(part, scaled)
            elif not delta.facts.optional:
                matches.missing.setdefault(site.component, []).append(part.site.name)


@dataclass
class _Matches:
    """The places that deltas were matched to, and those that they do not fit.

    Args:
        missing: component → names of adapter modules that the base lacks.
        misfits: modules whose shapes differ, with both shapes.
        wider: how many of them differ only by having more inputs than the base's.
        quantised: tensors that are stored as integers, with what quantised them.
    """

    checkpoint: Checkpoint
    missing: dict[str, list[str]] = field(default_factory=dict)
    misfits: list[str] = field(default_factory=list)
    wider: int = 0
    quantised: list[str] = field(default_factory=list)
    _grown: dict[CheckpointFile, dict[str, dict[tuple[Site, int], _GrowingEdit]]] = field(
        default_factory=dict
    )

    def add(self, part: Part, delta: Delta) -> None:
        """Add a delta to all places of a module, or note why it does not fit there."""
        for place, stretches in zip(part.places, part.stretches, strict=True):
            with naming(part.site, str(place.file.path)):
                held = place.held
            if held is None:
                sort = quantised_by(place.file.open()[0], place.name)
                self.quantised.append(f"{place.name} ({sort})")
                continue
            with naming(part.site, str(place.file.path)):
                _require_beside(place, held, self.checkpoint)
            if not part.fits(delta, place.shape):
                shapes = f"base {list(place.shape)}, adapter {part.shape(delta)}"
                self.misfits.append(f"{part.site.name}: {shapes}")
                self.wider += part.widens(delta, place.shape)
                continue
            tensors = self._grown.setdefault(place.file, {}).setdefault(place.name, {})
            edit = tensors.setdefault((part.site, place.part), _GrowingEdit(place))
            edit.deltas.append(delta)
            edit.offsets.append(part.start)
            edit.stretches.append(stretches)

    def edits(self) -> dict[CheckpointFile, dict[str, list[Edit]]]:
        """Return the edits of every tensor, by file."""
        return {
            file: {
                name: [edit.finished(site) for (site, _), edit in edits.items()]
                for name, edits in tensors.items()
            }
            for file, tensors in self._grown.items()
        }


@dataclass
class _GrowingEdit:
    """An edit as it grows, adapter by adapter."""

    place: Place
    deltas: list[Delta] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    stretches: list[tuple[Stretch, ...]] = field(default_factory=list)

    def finished(self, site: Site) -> Edit:
        """Return the edit of a module."""
        parts = tuple(self.deltas), tuple(self.offsets), tuple(self.stretches)
        return Edit(site, self.place, *parts)


def _require_floats(matches: _Matches) -> None:
    """Refuse a base that stores modules as integers.

    Raises:
        FormatError: listing the tensors.
    """
    if not matches.quantised:
        return
    raise FormatError(
        f"{len(matches.quantised)} tensors of the base are quantised and cannot be baked into",
        file=matches.checkpoint.path,
        module=listed(matches.quantised, 4),
        expected=", ".join(DTYPES[name].word for name in FLOATS),
        hint="bake into the base it was made from, then quantise that; or load the adapter beside "
        "the base",
    )


def _require_shapes(matches: _Matches) -> None:
    """Refuse modules whose shapes differ.

    Raises:
        ShapeError: listing them, with both shapes.
    """
    if not matches.misfits:
        return
    hint: Message = "the adapter was trained on a base of another size or family"
    if matches.wider == len(matches.misfits):
        first = matches.misfits[0].partition(":")[0]
        hint = (
            "the adapter widens this layer, as control adapters do (Flux.1 Canny and Depth), for which "
            "programs widen the base while they load it; load the adapter beside the base, or leave the "
            "layer out: convert with ",
            Setting("drop", first),
        )
    raise ShapeError(
        f"{len(matches.misfits)} modules of the adapter do not have the base's shapes",
        file=matches.checkpoint.path,
        module=listed(matches.misfits, 4),
        hint=hint,
    )


def require_changeable(checkpoint: Checkpoint) -> None:
    """Refuse another type for weights that are stored with scales.

    Raises:
        FormatError: naming the storage.
    """
    for file in checkpoint.files.weights:
        for storage in STORAGES.known():
            if storage.fixes_types(file.open()[0]):
                raise FormatError(
                    f"a {storage.name} base with scales cannot be given another type",
                    file=file.path,
                    hint=(
                        "leave out ",
                        Setting("dtype"),
                        ", or bake into the base it was made from",
                    ),
                )


def _require_beside(place: Place, held: HeldTensor, checkpoint: Checkpoint) -> None:
    """Refuse a weight whose scale lies in another file.

    Raises:
        FormatError: naming that file.
    """
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
        alone = next(iter(refused))  # modules of language models begin with no component
        component = alone if len(refused) == 1 and alone in COMPONENT_WORDS else "all"
        raise AdapterError(
            f"the base lacks {count} modules of the adapter",
            file=checkpoint.path,
            module=listed([name for names in refused.values() for name in names], 6),
            found=f"the base has {', '.join(checkpoint.layouts) or 'nothing known'}",
            hint=("to bake the rest, give ", Setting("skip_missing", component)),
        )
    return [name for names in missing.values() for name in names]
