"""Parts that a merge takes from one input as they are: modules by pattern, and slices of layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from loramerge.algebra.weights import Weight
from loramerge.errors import Setting, UsageError, listed
from loramerge.steps.models import Models, Rule
from loramerge.steps.references import Reference, place_of

if TYPE_CHECKING:
    from loramerge.stream.stacking import Slice, StackedModel

__all__ = [
    "require_layers_alone",
    "require_matches",
    "rules_in",
    "slices_in",
    "stack_of",
    "with_layers",
]

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
# parameters that do not act on layers that are taken as they are
_APART = ("base", "vae", "text_encoder", "layout", "union", "scale")


def rules_in(texts: Sequence[str], references: Sequence[Reference]) -> list[Rule]:
    """Return the rules that texts `PATTERN=NAME` state.

    Raises:
        UsageError: if a text is not one, or names no input.
    """
    found = []
    for text in texts:
        pattern, equals, name = text.rpartition("=")
        if not equals or not pattern:
            hint = (Setting("take", "unet.mid_block.*=B"),)
            raise UsageError(f"{text!r} is not PATTERN=NAME", hint=hint)
        found.append(Rule(pattern, place_of(name, references)))
    return found


def require_matches(rules: Sequence[Rule], modules: Iterable[str]) -> None:
    """Refuse a pattern that matches no module.

    Raises:
        UsageError: with names of modules.
    """
    names = list(dict.fromkeys(modules)) if rules else []
    for rule in rules:
        if not any(fnmatchcase(name, rule.pattern) for name in names):
            raise UsageError(
                f"no module of the first checkpoint matches {rule.pattern!r}",
                expected=f"a pattern for names such as {listed(names, 3)}",
            )


def slices_in(texts: Sequence[str], references: Sequence[Reference]) -> list[Slice]:
    """Return the slices that texts `NAME=FIRST-LAST` state; their models are places of references.

    Raises:
        UsageError: if a text is not one, or names no input.
    """
    from loramerge.stream.stacking import Slice

    found = []
    for text in texts:
        name, equals, numbers = text.rpartition("=")
        wanted = _RANGE.fullmatch(numbers.strip())
        if not equals or wanted is None:
            hint = (Setting("layers", "A=0-15"), ", for layers 0 to 15 of A")
            raise UsageError(f"{text!r} is not NAME=FIRST-LAST", hint=hint)
        first = int(wanted.group(1))
        last = int(wanted.group(2) or first)
        if last < first:
            raise UsageError(f"{text!r}: the last layer comes before the first")
        found.append(Slice(place_of(name, references), first, last))
    return found


def require_layers_alone(parameters: Any) -> None:
    """Refuse parameters of a merge that do not act on layers that are taken as they are.

    Raises:
        UsageError: naming one.
    """
    given = [name for name in _APART if getattr(parameters, name) is not None]
    if parameters.method != "linear":
        given.insert(0, "method")
    if given:
        raise UsageError(
            f"layers are taken as they are, and {given[0]} would merge them",
            hint=("leave it out, or merge the models first and stack the result: leave out ",
                  Setting("layers")),
        )  # fmt: skip


def stack_of(
    texts: Sequence[str], models: Models, rules: Sequence[Rule], dtype: str | None
) -> StackedModel:
    """Return the model that slices of layers make.

    Args:
        texts: slices, see `slices_in`.
        rules: which input gives modules outside of the layers.

    Raises:
        UsageError: if an input has a weight, or a slice is of an adapter.
        LoramergeError: see `stream.stacking.stacked`.
    """
    from loramerge.stream.stacking import stacked

    numbers = _numbers(models)
    for reference, _ in models.checkpoints:
        if reference.weight != Weight():
            raise UsageError(
                f"layers are taken as they are, and {reference.label} has the weight "
                f"{reference.written}",
                hint="leave out the weight",
            )
    slices = [replace(one, model=_number(one.model, models, numbers))
              for one in slices_in(texts, models.references)]  # fmt: skip
    checkpoints = [model for _, model in models.checkpoints]
    names = [name.rpartition(".")[0] for file in checkpoints[0].files.weights
             for name in file.open()[0]]  # fmt: skip
    require_matches(rules, names)
    outside = {
        name: _number(rule.place, models, numbers)
        for rule in rules
        for name in names
        if fnmatchcase(name, rule.pattern)
    }
    return stacked(checkpoints, slices, outside, same_types=dtype is None)


def _numbers(models: Models) -> dict[int, int]:
    """Return place of a reference → number of its checkpoint."""
    places = [place for place, one in enumerate(models.references) if not one.adapter]
    return {place: number for number, place in enumerate(places)}


def _number(place: int, models: Models, numbers: dict[int, int]) -> int:
    if place not in numbers:
        label = models.references[place].label
        raise UsageError(f"{label} is an adapter, and layers are those of checkpoints")
    return numbers[place]


def with_layers(texts: Sequence[str], models: Models) -> list[Reference]:
    """Return the references to checkpoints with the layers that they give, in words for tables."""
    slices = slices_in(texts, models.references)
    found = []
    for place, reference in enumerate(models.references):
        if not reference.adapter:
            own = [f"{one.first} to {one.last}" for one in slices if one.model == place]
            found.append(replace(reference, written=", ".join(own) or "none"))
    return found
