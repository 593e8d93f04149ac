"""The plan of a merge: which tensors are combined, of what, and which come from one input alone.

A plan is made from headers alone, and refused if it cannot be carried out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from loramerge.adapter import Adapter, Site
from loramerge.algebra.combine import SUM
from loramerge.algebra.method import Method
from loramerge.algebra.operators import OPERATORS
from loramerge.algebra.weights import Weight, shown_number
from loramerge.checkpoint import Checkpoint, CheckpointFile
from loramerge.checkpoint.composed import Composed
from loramerge.checkpoint.files import CheckpointFiles
from loramerge.checkpoint.generic import with_given
from loramerge.errors import FormatError, Setting, UsageError, listed
from loramerge.files.tensors import Tensor
from loramerge.stream.added_changes import add_changes
from loramerge.stream.counterparts import Counterparts, PairedTensors, pair, require_one_family
from loramerge.stream.ingredients import Blend, Ingredient
from loramerge.stream.layout import laid_out, vae_in
from loramerge.stream.plan import require_changeable
from loramerge.stream.union import Union, added, require_same
from loramerge.stream.vae import vae_of

__all__ = ["MergePlan", "plan_merge"]

_ONE = 1e-6  # distance of a sum of weights from 1 that is their rounding
_TEXT = "text_encoder"  # and text_encoder_2, …


@dataclass
class MergePlan:
    """The plan of a merge, tensor by tensor; made from headers alone.

    Args:
        first: the checkpoint whose layout the result has.
        files: its files, with tensors that others bring along.
        blends: how the tensors of each file are made; the others are copied.
        averages: names of tensors that are left out: running averages of the weights before.
        dtype: safetensors name of the type that all floating tensors get, or None.
        notes: what else is not merged, in words.
        united: number of parameters that not every input has.
        rest: whether the first input has the weight that the others leave.
        skipped: names of adapter modules that the first lacks and that may be skipped.
        config: fields of a language model's configuration that change.
    """

    first: Checkpoint
    files: CheckpointFiles
    blends: dict[PurePosixPath, dict[str, list[Blend]]]
    averages: frozenset[str]
    dtype: str | None
    notes: list[str] = field(default_factory=list)
    united: int = 0
    rest: bool = False
    skipped: list[str] = field(default_factory=list)
    config: Mapping[str, Any] = field(default_factory=dict)

    def sites(self) -> Iterator[Site]:
        """Yield the modules of all parameters that are merged."""
        for tensors in self.blends.values():
            for blends in tensors.values():
                yield from (blend.site for blend in blends)

    @property
    def merged(self) -> int:
        """Number of tensors that are merged, rather than copied."""
        return sum(
            not all(blend.is_copy for blend in blends)
            for tensors in self.blends.values()
            for blends in tensors.values()
        )

    def changes(self) -> Iterator[Blend]:
        """Yield the parameters of the tensors that are merged, those that are copied left out."""
        for tensors in self.blends.values():
            for blends in tensors.values():
                yield from (blend for blend in blends if not blend.is_copy)


def plan_merge(
    models: Sequence[tuple[Checkpoint, Weight]],
    method: Method = SUM,
    *,
    base: Checkpoint | None = None,
    text_encoder: Checkpoint | None = None,
    vae: CheckpointFiles | None = None,
    layout: Checkpoint | None = None,
    union: Union | None = None,
    dtype: str | None = None,
    adapters: Sequence[tuple[Adapter, Weight]] = (),
    skip_missing: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> MergePlan:
    """Pair the tensors of checkpoints, and plan how each is made.

    Args:
        base: what the changes of the models are taken from, and added to; None combines the weights
            themselves.
        text_encoder: whose text encoders the result has; None merges those of the models.
        vae: files whose VAE the result has; None keeps that of the first model.
        layout: checkpoint whose layout, types and further files the result has; None is the first model.
        union: what becomes of tensors that some model lacks: `first` takes them from the first that
            has them, `zero` counts what is missing as no change, or as zeros without a base.
        dtype: safetensors name of a type that all floating tensors shall have.
        adapters: whose changes are added to what the models make.
        skip_missing: components whose modules the first model may lack, or `all`.
        config: fields of the first model's configuration that change.

    Raises:
        FamilyError: if they belong to different families.
        AdapterError: if an adapter does not fit the first model, see `plan_bake`.
        FormatError: if they do not hold the same tensors, or hold them in ways that are not known.
        ShapeError: if tensors differ in shape.
        UsageError: if the method cannot merge checkpoints, or weights do not sum to 1 where they must.
    """
    _require_method(method, len(models), base)
    checkpoints = [checkpoint for checkpoint, _ in models]
    sources = [*checkpoints, *(one for one in (base, text_encoder) if one is not None)]
    first = checkpoints[0] if layout is None else layout
    require_one_family([first, *sources])
    _require_written(first)
    if dtype is not None:
        require_changeable(first)
    if layout is not None and union is not None:
        raise UsageError(
            "tensors that some inputs lack cannot be brought into another layout",
            hint=("leave out ", Setting("union"), " or ", Setting("layout")),
        )
    if layout is not None and adapters:
        raise UsageError(
            "adapters among the inputs cannot be merged into another layout",
            hint=("merge without them, and bake them into the result; or leave out ",
                  Setting("layout")),
        )  # fmt: skip
    found = pair(sources) if layout is None else laid_out(pair([layout, *sources]))
    text = None if text_encoder is None else len(sources) - 1
    if text is not None:
        _require_text(found, text)
    if union is None:
        require_same(found, len(models), None if text is None else _TEXT)
    planner = _Planner(models, method, base is not None, union, text)
    blends: dict[PurePosixPath, dict[str, list[Blend]]] = {
        file.relative: {name: list(map(planner.blend, parts)) for name, parts in tensors.items()}
        for file, tensors in found.parts.items()
    }
    given: dict[CheckpointFile, dict[str, Tensor]] = {}
    if vae is not None:
        given = vae_of(vae, first)
    elif layout is not None:
        given = vae_in(layout, checkpoints[0])
    for file, name, one in added(found, len(models)) if union is not None else ():
        blends.setdefault(file.relative, {})[name] = [planner.blend(one)]
        given.setdefault(file, {})[name] = one.target.file.open()[0][name]
    planner.require_one()
    files = with_given(first.files, given)
    notes = [*first.files.notes, *_notes(found, first, vae is not None, text)]
    notes += planner.method.described(
        blend.site for tensors in blends.values() for made in tensors.values() for blend in made
    )
    changes = add_changes(blends, first, files, adapters, skip_missing)
    notes += changes.notes
    return MergePlan(
        first, files, blends, frozenset(found.averages), dtype, notes, planner.united, planner.rest,
        changes.skipped, config or {},
    )  # fmt: skip


def _require_method(method: Method, models: int, base: Checkpoint | None) -> None:
    """Refuse a method that cannot merge checkpoints, or so many, or without a base.

    Raises:
        UsageError: naming what can.
    """
    operator = method.operator
    if operator.needs_factors:
        able = [one.name for one in OPERATORS.known() if not one.needs_factors]
        raise UsageError(
            f"the method {operator.name} works on low-rank factors, which checkpoints do not have",
            expected=listed(able, 40),
        )
    if base is None and not operator.of_weights:
        able = [one.name for one in OPERATORS.known() if one.of_weights]
        raise UsageError(
            f"the method {operator.name} combines changes of a base, and none is given",
            expected=f"a base; without one: {', '.join(able)}",
            hint=("give the checkpoint that all were trained from: ", Setting("base", "C")),
        )
    method.require_count(models)


@dataclass
class _Planner:
    """Decides how each parameter is made.

    Args:
        text: number of the checkpoint whose text encoders the result has, None to merge them.
        united: number of parameters so far that not every model has.
    """

    models: Sequence[tuple[Checkpoint, Weight]]
    method: Method
    on_base: bool
    union: Union | None
    text: int | None = None
    united: int = 0
    rest: bool = field(init=False)
    _sums: dict[str, list[str]] = field(default_factory=dict)  # weights that are not 1 → sites
    _weighed: int = 0  # sites

    def __post_init__(self) -> None:
        first, *others = (weight for _, weight in self.models)
        # the first has what the others leave where only they have weights
        self.rest = not self.on_base and first == Weight() and any(w != first for w in others)
        self._weights = [
            weight.among(
                (module for module, _ in checkpoint.slots),
                checkpoint.candidates[0] if checkpoint.candidates else None,
                str(checkpoint.path),
            )
            for checkpoint, weight in self.models
        ]
        checkpoint = self.models[0][0]
        self.method = self.method.among(
            (module for module, _ in checkpoint.slots),
            checkpoint.candidates[0] if checkpoint.candidates else None,
            str(checkpoint.path),
        )

    def blend(self, part: Counterparts) -> Blend:
        """Return how a parameter is made."""
        if self.text is not None and part.site.component.startswith(_TEXT):
            place = part.places[self.text]
            assert place is not None
            chosen = (Ingredient(place, 1.0, self.text),)
            return Blend(part.site, part.target, chosen, SUM, first=part.first)
        places = part.places[: len(self.models)]
        base = part.places[len(self.models)] if self.on_base else None
        if None in places:
            self.united += 1
            if self.union == "first":
                position = next(i for i, place in enumerate(places) if place is not None)
                return Blend(part.site, part.target, (Ingredient(part.target, 1.0, position),), SUM)
        weights = self._of(part.site)
        terms = tuple(
            Ingredient(place, weight, position)
            for position, (place, weight) in enumerate(zip(places, weights, strict=True))
            if place is not None and weight != 0.0
        )
        if not terms and not self.on_base:  # what has the weight is missing
            terms = (Ingredient(part.first, 0.0, 0),)
        if self.on_base and self._passes(terms):  # to the bit, which a change from the base is not
            return Blend(part.site, part.target, terms, SUM, base=base)
        method = self.method.at(part.site)
        return Blend(part.site, part.target, terms, method, self.on_base, base, part.first)

    def _passes(self, terms: Sequence[Ingredient]) -> bool:
        """Return whether the result is one input as it is."""
        scale, alone = self.method.scale, self.method.operator.alone
        one = len(terms) == 1 and terms[0].weight == 1.0
        return one and not alone and (not isinstance(scale, float) or scale == 1.0)

    def _of(self, site: Site) -> list[float]:
        """Return the weight of each model at a site."""
        self._weighed += 1
        weights = [of(site) for of in self._weights]
        if self.rest:
            weights[0] = 1.0 - sum(weights[1:])
        if not self.on_base and abs(sum(weights) - 1.0) > _ONE:
            self._sums.setdefault(" + ".join(map(shown_number, weights)), []).append(site.name)
        return weights

    def require_one(self) -> None:
        """Refuse weights that do not sum to 1 where weights themselves are combined.

        Raises:
            UsageError: naming the sums.
        """
        if not self._sums:
            return
        text, sites = next(iter(self._sums.items()))
        total = shown_number(round(sum(map(float, text.split(" + "))), 7))
        base = "; or give the checkpoint that all were trained from: ", Setting("base", "C")
        if len(self.models) == 1:
            raise UsageError(
                f"without a base the weight of a single model must be 1; found {total}",
                hint=("leave its weight out", *base),
            )
        where = "every tensor" if len(sites) == self._weighed else listed(sites, 3)
        shares = [shown_number(round(1 / len(self.models), 4))] * len(self.models)
        raise UsageError(
            f"without a base the weights of the models must sum to 1; found {total}",
            found=f"{text}, in {where}",
            hint=(
                f"give weights such as {' and '.join(shares)}; an unweighted first model gets what the "
                "others leave",
                *base,
            ),
        )


def _require_written(layout: Checkpoint) -> None:
    """Refuse a layout in which whole weights cannot be written.

    Raises:
        FormatError: naming a weight.
    """
    for places in layout.slots.values():
        for place in places:
            if isinstance(place.tensor, Composed):
                raise FormatError(
                    "a merge cannot be written in the layout of this checkpoint: SVDQuant takes changes "
                    "of low rank only",
                    file=place.file.path,
                    module=place.name,
                    hint=(
                        "give another checkpoint first, or as ",
                        Setting("layout"),
                        "; `bake` joins adapters to this one",
                    ),
                )


def _require_text(found: PairedTensors, text: int) -> None:
    """Refuse a checkpoint that lacks the text encoders it shall give, or a first one without any.

    Raises:
        FormatError: naming what is missing.
    """
    if not any(one.site.component.startswith(_TEXT) for one in found.all_parts()):
        raise FormatError(
            "the first checkpoint has no text encoder, and the result has its layout",
            file=found.checkpoints[0].path,
            hint=("leave out ", Setting("text_encoder")),
        )
    lacks = [name for name in found.missing.get(text, ()) if name.startswith(_TEXT)]
    if lacks:
        raise FormatError(
            "the checkpoint lacks text encoders that the first has",
            file=found.checkpoints[text].path,
            module=listed(lacks, 4),
            hint=("give another ", Setting("text_encoder")),
        )


def _notes(
    found: PairedTensors, layout: Checkpoint, other_vae: bool, text: int | None
) -> Iterator[str]:
    """Yield what is not merged, in words."""
    first = found.checkpoints[0].path.name
    if text is not None:
        yield f"the text encoders are those of {found.checkpoints[text].path.name}"
    if count := len(found.averages):
        yield f"left out {count} running averages (EMA), which merged weights do not have"
    if (count := len(found.copied.get("vae", ()))) and not other_vae:
        yield f"the VAE is that of {first} ({count} tensors)"
    if count := len(found.copied.get("buffer", ())):
        name = layout.path.name
        yield f"constants and tensors of whole numbers are those of {name} ({count} tensors)"
