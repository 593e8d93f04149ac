"""The inputs of a merge, opened: checkpoints, and adapters that are added to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from loramerge.adapter import Adapter
from loramerge.algebra.weights import Weight
from loramerge.errors import FamilyError, UsageError
from loramerge.steps.idle_weights import warn_of_idle_in
from loramerge.steps.inputs import adapter_of, find_told, is_adapter, open_base
from loramerge.steps.parameters import Context
from loramerge.steps.references import Reference

if TYPE_CHECKING:
    from loramerge.checkpoint import Checkpoint

__all__ = ["Models", "Rule", "open_models"]

_AN_ADAPTER = (
    "this is an adapter, and merge needs at least one whole checkpoint",
    "`mix` combines adapters in one file, each at its weight",
)


@dataclass(frozen=True)
class Rule:
    """A rule by which modules come from one input as they are.

    Args:
        pattern: of names of modules; place: of the input among all, from 0.
    """

    pattern: str
    place: int


@dataclass
class Models:
    """The inputs of a merge, in the order that they were given.

    Args:
        checkpoints, adapters: what the references name, opened; those of adapters say so.
    """

    checkpoints: list[tuple[Reference, Checkpoint]] = field(default_factory=list)
    adapters: list[tuple[Reference, Adapter]] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)

    def taking(self, rules: Sequence[Rule], *, on_base: bool) -> Models:
        """Return the same with weights by which what rules match comes from one checkpoint.

        Without a base, a further checkpoint that had no weight gives nothing else.

        Raises:
            UsageError: if a rule takes from an adapter.
        """
        given = {place for place, one in enumerate(self.references) if not one.adapter}
        for rule in rules:
            if rule.place not in given:
                raise UsageError(
                    f"{self.references[rule.place].label} is an adapter, and modules are taken from "
                    "checkpoints"
                )
        changed = list(self.references)
        for place in sorted(given) if rules else ():
            changed[place] = _taken(
                changed[place], place, rules, first=place == min(given), on_base=on_base
            )
        named = iter(changed[place] for place in sorted(given))
        checkpoints = [(next(named), model) for _, model in self.checkpoints]
        return Models(checkpoints, self.adapters, changed)


def _taken(
    reference: Reference, place: int, rules: Sequence[Rule], *, first: bool, on_base: bool
) -> Reference:
    """Return a reference with the weights 1 and 0 of what it gives alone and what others give."""
    weight = reference.weight
    bare = weight == Weight() and not on_base
    if bare and first:
        return reference  # it has what the others leave
    gives = bare and any(rule.place == place for rule in rules)
    match = tuple((rule.pattern, float(rule.place == place)) for rule in rules)
    weight = replace(weight, default=0.0 if gives else weight.default, match=weight.match + match)
    return replace(reference, weight=weight, written=weight.text())


def open_models(references: Sequence[Reference], context: Context, *, whole: bool) -> Models:
    """Open checkpoints and adapters, each told by its name, or by what it is.

    Args:
        whole: refuse an adapter with unknown tensors.

    Raises:
        NotFound: if there is nothing of a name.
        FormatError: if all are adapters.
        LoramergeError: see `inputs.open_base` and `inputs.adapter_of`.
    """
    found = Models()
    for reference in references:
        model = _opened(reference, context, whole=whole)
        if isinstance(model, Adapter):
            reference = replace(reference, adapter=True)
            found.adapters.append((reference, model))
        else:
            found.checkpoints.append((reference, model))
            warn_of_idle_in(reference, model, context.notify)
        found.references.append(reference)
    if not found.checkpoints:
        first = references[0]
        if first.adapter or isinstance(context.known.get(first.name), Adapter):
            raise UsageError(_AN_ADAPTER[0], found=first.name, hint=_AN_ADAPTER[1])
        open_base(first.name, context, _AN_ADAPTER)
    return found


def _opened(reference: Reference, context: Context, *, whole: bool) -> Checkpoint | Adapter:
    """Return what a reference names.

    Raises:
        NotFound: if there is neither a checkpoint nor an adapter of this name.
        LoramergeError: if it cannot be opened.
    """
    from loramerge.checkpoint import open_checkpoint

    known = context.known.get(reference.name)
    if reference.adapter or isinstance(known, Adapter):
        return adapter_of(reference, context, whole=whole)
    path = known if known is not None else find_told(reference.name, "models", context)
    try:
        return open_checkpoint(path)
    except FamilyError:
        if not is_adapter(path):
            raise
    here = replace(context, known={**context.known, reference.name: path})
    return adapter_of(reference, here, whole=whole)
