"""The places in a base that deltas are matched to, and refusals of those that they do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from loramerge.adapter import Delta, Site
from loramerge.algebra.terms import naming
from loramerge.checkpoint import Checkpoint, CheckpointFile, Place
from loramerge.checkpoint.storage import HeldTensor
from loramerge.checkpoint.storages import STORAGES, quantised_by
from loramerge.errors import (
    AdapterError,
    FormatError,
    Message,
    Setting,
    ShapeError,
    listed,
)
from loramerge.families.components import COMPONENT_WORDS
from loramerge.files.dtypes import DTYPES, FLOATS
from loramerge.stream.edits import Edit
from loramerge.stream.matching import Part
from loramerge.stream.reading import Stretch

__all__ = ["Placements", "require_floats", "require_modules", "require_shapes"]


@dataclass
class Placements:
    """The places that deltas were matched to, and those that they do not fit.

    Args:
        missing: component → names of adapter modules that the base lacks.
        misfits: modules whose shapes differ, with both shapes.
        wider: how many of them differ only by having more inputs than the base's.
        filled: how many have the base's shape if they are filled up as its format does.
        quantised: tensors that are stored as integers, with what quantised them.
    """

    checkpoint: Checkpoint
    missing: dict[str, list[str]] = field(default_factory=dict)
    misfits: list[str] = field(default_factory=list)
    wider: int = 0
    filled: int = 0
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
                unit = getattr(held.packing, "fills", 1)
                full = [n + -n % unit for n in part.shape(delta)]
                self.filled += unit > 1 and full == [*place.shape]
                continue
            delta = part.at(delta, place.shape)
            tensors = self._grown.setdefault(place.file, {}).setdefault(place.name, {})
            edit = tensors.setdefault((part.site, place.part), _GrowingEdit(place))
            edit.deltas.append(delta)
            edit.offsets.append(part.start)
            edit.stretches.append(stretches)

    @property
    def matched(self) -> bool:
        """True if the base has any module of the adapters."""
        return bool(self._grown)

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


def require_floats(placements: Placements) -> None:
    """Refuse a base that stores modules as integers.

    Raises:
        FormatError: listing the tensors.
    """
    if not placements.quantised:
        return
    raise FormatError(
        f"{len(placements.quantised)} tensors of the base are quantised and cannot be baked into",
        file=placements.checkpoint.path,
        module=listed(placements.quantised, 4),
        expected=", ".join(DTYPES[name].word for name in FLOATS),
        hint="bake into the base it was made from, then quantise that; or load the adapter beside "
        "the base",
    )


def require_shapes(placements: Placements) -> None:
    """Refuse modules whose shapes differ.

    Raises:
        ShapeError: listing them, with both shapes.
    """
    if not placements.misfits:
        return
    hint: Message = "the adapter was trained on a base of another size or family"
    if placements.wider == len(placements.misfits):
        first = placements.misfits[0].partition(":")[0]
        hint = (
            "the adapter widens this layer, as control adapters do (Flux.1 Canny and Depth), for which "
            "programs widen the base while they load it; load the adapter beside the base, or leave the "
            "layer out: convert with ",
            Setting("drop", first),
        )
    if placements.filled == len(placements.misfits):
        hint = (
            "the format of these weights fills them up with zeros, and no file states their true shape; "
            "bake into the checkpoint it was made from"
        )
    raise ShapeError(
        f"{len(placements.misfits)} modules of the adapter do not have the base's shapes",
        file=placements.checkpoint.path,
        module=listed(placements.misfits, 4),
        hint=hint,
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


def _what_it_has(checkpoint: Checkpoint) -> str:
    has = f"the base has {', '.join(checkpoint.layouts) or 'nothing known'}"
    return f"{has}; {checkpoint.reason}" if checkpoint.is_unknown else has


def require_modules(placements: Placements, skip_missing: Sequence[str]) -> list[str]:
    """Refuse modules that the base lacks, unless their component may be skipped; return those.

    Raises:
        AdapterError: listing them, with the way to bake the others, if the base has any.
    """
    checkpoint = placements.checkpoint
    refused = {
        component: names
        for component, names in placements.missing.items()
        if component not in skip_missing and "all" not in skip_missing
    }
    if refused:
        count = sum(len(names) for names in refused.values())
        alone = next(iter(refused))  # modules of language models begin with no component
        component = alone if len(refused) == 1 and alone in COMPONENT_WORDS else "all"
        rest: Message = ("to bake the rest, give ", Setting("skip_missing", component))
        raise AdapterError(
            f"the base lacks {count} modules of the adapter",
            file=checkpoint.path,
            module=listed([name for names in refused.values() for name in names], 6),
            found=_what_it_has(checkpoint),
            hint=rest if placements.matched else "choose the base that the adapter was trained on",
        )
    return [name for names in placements.missing.values() for name in names]
