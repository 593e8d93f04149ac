"""Pair the parameters of two checkpoints, module by module, from their headers alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, NamedTuple

from loramerge.adapter import Site
from loramerge.checkpoint import Checkpoint, Place
from loramerge.checkpoint.generic import model_config
from loramerge.checkpoint.storages import quantised_by
from loramerge.dialects import Dialect
from loramerge.dialects.detection import Detection
from loramerge.errors import FamilyError, FormatError, Setting, ShapeError, listed
from loramerge.families import Family, Parameter

__all__ = ["PairedSite", "Pairing", "PlacePair", "Sort", "paired"]

# what a parameter is to extraction: a matrix with a low-rank form, or one of what has none
Sort = Literal["matrix", "bias", "norm", "embedding", "table"]

_SORTS: Mapping[str, Sort] = {
    "linear": "matrix", "conv": "matrix", "norm": "norm", "embedding": "embedding", "matrix": "table",
}  # fmt: skip
_EMBEDDINGS = ("wte", "wpe")  # what language models call them, beside names with "embed" in them
_TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # store (in, out)


class PlacePair(NamedTuple):
    """The places of one parameter in both checkpoints."""

    tuned: Place
    base: Place


class PairedSite(NamedTuple):
    """The parameters of a site, one above the other.

    Args:
        shape: `(out, in)`, `(out, in, kh, kw)` or `(n,)`.
        sort: what they are to extraction.
    """

    site: Site
    pairs: tuple[PlacePair, ...]
    shape: tuple[int, ...]
    sort: Sort

    @property
    def flat_shape(self) -> tuple[int, int]:
        """`(out, in·kh·kw)`; a vector counts as one column."""
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def stretches(self) -> Iterator[tuple[int, PlacePair]]:
        """Yield the row at which each parameter begins, and its places."""
        start = 0
        for pair in self.pairs:
            yield start, pair
            start += pair.tuned.shape[0]


@dataclass(frozen=True)
class Pairing:
    """The common sites of two checkpoints.

    Args:
        detection: the family that both are of.
        groups: in the order of the family.
        one_side: names of parameters that only one of them has, and that are left out.
        components: components that only one of them has.
        outside: number of tensors that no module of the family names, in the tuned checkpoint.
        dtypes: safetensors names of the types of all parameters.
    """

    detection: Detection
    groups: tuple[PairedSite, ...]
    one_side: list[str]
    components: list[str]
    outside: int
    dtypes: set[str] = field(default_factory=set)


def paired(
    tuned: Checkpoint, base: Checkpoint, target: Dialect | None, *, skip: Sequence[str] = ()
) -> Pairing:
    """Match the parameters of two checkpoints of one family, whatever their layouts; headers only.

    Args:
        target: the dialect that will be written; parameters that it stores fused are one site.
        skip: components of which one of them may lack parameters.

    Raises:
        FamilyError: if they belong to different families, or to one whose layout is not verified.
        FormatError: if one lacks parameters that the other has, or holds them in an unknown way.
        ShapeError: if a parameter has two shapes.
    """
    candidates = _common_family(tuned, base)
    naming = candidates[0] if candidates else None
    components = sorted(tuned.layouts.keys() ^ base.layouts.keys())
    keys = [key for key in tuned.slots if key in base.slots and _kind(naming, tuned, *key)]
    alone = [key for key in chain(tuned.slots, base.slots)
             if (key in tuned.slots) != (key in base.slots)
             and key[0].partition(".")[0] not in components]  # fmt: skip
    _refuse_missing(tuned, base, alone, skip)
    pairs = {key: PlacePair(tuned.slots[key][0], base.slots[key][0]) for key in keys}
    for (module, parameter), pair in pairs.items():
        _check(tuned, base, f"{module}.{parameter}", pair)
    groups = tuple(_groups(pairs, naming, tuned, target))
    named = {(place.file, place.name) for places in tuned.slots.values() for place in places}
    outside = sum(
        (file, name) not in named for file in tuned.files.weights for name in file.names()
    )
    return Pairing(
        Detection(candidates, f"that of {tuned.path.name}"),
        groups,
        [f"{module}.{parameter}" for module, parameter in alone],
        components,
        outside,
        {place.tensor.dtype for pair in pairs.values() for place in pair},
    )


def _common_family(tuned: Checkpoint, base: Checkpoint) -> tuple[Family, ...]:
    common = tuple(family for family in tuned.candidates if family in base.candidates)
    if not common and (tuned.candidates or base.candidates):
        raise FamilyError(
            "the checkpoints belong to different families",
            file=f"{tuned.path} and {base.path}",
            expected=f"{base.family_name} ({base.reason})",
            found=f"{tuned.family_name} ({tuned.reason})",
            hint="give the base that was tuned",
        )
    if common and not common[0].proven:
        raise FamilyError(
            f"the family {common[0].name} is read-only: the layout of its files is not verified",
            file=tuned.path,
        )
    kind = "" if common else model_config(tuned.files).get("model_type", "")
    if kind in _TRANSPOSED:
        raise FamilyError(
            f"models of type {kind} store their weights transposed, which is not supported here",
            file=tuned.path,
        )
    return common


def _refuse_missing(
    tuned: Checkpoint, base: Checkpoint, alone: Sequence[tuple[str, Parameter]], skip: Sequence[str]
) -> None:
    refused = [key for key in alone if key[0].partition(".")[0] not in skip and "all" not in skip]
    if not refused:
        return
    lacking = base if refused[0] in tuned.slots else tuned
    names = [f"{m}.{p}" for m, p in refused if ((m, p) in tuned.slots) == (lacking is base)]
    count = f"{len(names)} parameter{'s'[: len(names) > 1]}"
    raise FormatError(
        f"the checkpoint lacks {count} that the other one has",
        file=lacking.path,
        module=listed(names, 4),
        hint=("leave them out with ", Setting("skip_missing", "all"), ", if the rest is enough"),
    )


def _check(tuned: Checkpoint, base: Checkpoint, name: str, pair: PlacePair) -> None:
    for place in pair:
        if place.held is None:
            raise FormatError(
                "the weights are stored in a way that cannot be read",
                file=place.file.path,
                module=name,
                found=quantised_by(place.file.open()[0], place.name),
                hint="give the model that it was quantised from",
            )
    if pair.tuned.shape != pair.base.shape and _squeezed(pair.tuned) != _squeezed(pair.base):
        raise ShapeError(
            "a weight has different shapes in the two checkpoints",
            file=tuned.path,
            module=name,
            expected=f"{list(pair.base.shape)}, as in {base.path.name}",
            found=list(pair.tuned.shape),
            hint="give the base that was tuned",
        )


def _squeezed(place: Place) -> tuple[int, ...]:
    """Return a shape without a kernel of 1×1, which layouts may leave out."""
    shape = place.shape
    return shape[:2] if set(shape[2:]) <= {1} else shape


def _kind(
    naming: Family | None, tuned: Checkpoint, module: str, parameter: Parameter
) -> Sort | None:
    """Return what a parameter is to extraction, None for other tensors."""
    if parameter == "base":
        return None
    if parameter == "bias":
        return "bias"
    if naming is not None:
        found = naming.find(module)
        return None if found is None else _SORTS[found.layer]
    last = module.rpartition(".")[2]
    place = tuned.slots[module, parameter][0]
    axes = len(place.shape)
    if tuned.is_unknown:  # a linear layer may be called an embedder, and kernels are convolutions'
        bare = not place.name.endswith(".weight") and axes > 1
        return "table" if bare else "norm" if axes == 1 else "matrix"
    if "embed" in last or last in _EMBEDDINGS:
        return "embedding"
    return "norm" if axes == 1 else "matrix" if axes == 2 else "table"


def _groups(
    pairs: Mapping[tuple[str, Parameter], PlacePair],
    naming: Family | None,
    tuned: Checkpoint,
    target: Dialect | None,
) -> Iterator[PairedSite]:
    """Yield the sites, those that the target stores fused as one where all their sorts are there."""
    layout = target.layout(naming) if naming is not None and target is not None else {}
    done: set[tuple[str, Parameter]] = set()
    for (module, parameter), pair in pairs.items():
        if (module, parameter) in done:
            continue
        kind = _kind(naming, tuned, module, parameter)
        assert kind is not None
        shape = _full_shape(naming, module, parameter, pair)
        fused = layout.get(module)
        keys = [(m, parameter) for m in fused.modules] if fused is not None else []
        if fused is None or kind not in ("matrix", "bias") or any(k not in pairs for k in keys):
            yield PairedSite(Site((module,), parameter), (pair,), shape, kind)
            continue
        done.update(keys)
        found = tuple(pairs[key] for key in keys)
        rows = sum(one.tuned.shape[0] for one in found)
        site = Site(fused.modules, parameter, fused.spans)
        yield PairedSite(site, found, (rows, *shape[1:]), kind)


def _full_shape(
    naming: Family | None, module: str, parameter: Parameter, pair: PlacePair
) -> tuple[int, ...]:
    """Return a parameter's shape with the kernel that its layer has, also where it is left out."""
    shape = pair.tuned.shape
    known = naming.find(module) if naming is not None and parameter == "weight" else None
    if known is not None and len(known.shape) != len(shape) and set(shape[2:]) <= {1}:
        return (*shape[:2], *(1,) * (len(known.shape) - 2))
    return shape


# ---- reading
