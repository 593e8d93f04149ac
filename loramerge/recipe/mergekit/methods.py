"""Methods of mergekit: what their parameters are called here.

Where mergekit's definition is another one, the method says what makes ours the same, or why it cannot
be. Those that prune changes and add them (TIES, DARE, DELLA, breadcrumbs) are in `arithmetic`.

Source: mergekit 0.1.5, `merge_methods`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from loramerge.recipe.mergekit.gradients import (
    Gradient,
    Layers,
    Rules,
    Unreadable,
    combined,
    constant,
    rules_of,
    values_of_rules,
    with_default,
)

__all__ = ["METHODS", "Counterpart", "TheirMerge", "on_base", "ones"]


@dataclass
class TheirMerge:
    """One merge of mergekit's, and its counterpart as it grows.

    Args:
        models: what is merged, in order.
        own: parameters of each model.
        scopes: parameters that hold for all, the nearer ones first.
        layers: of the models.
        problems: what has no counterpart, in words.
    """

    method: str
    base: str | None
    models: list[str]
    own: list[Mapping[str, Any]]
    scopes: Sequence[Mapping[str, Any]]
    layers: Layers
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Note what cannot be expressed, and go on."""
        try:
            yield
        except Unreadable as error:
            self.refuse(error)

    def refuse(self, error: Unreadable) -> None:
        """Note what cannot be expressed, once."""
        if str(error) not in self.problems:
            self.problems.append(str(error))

    def note(self, text: str) -> None:
        """Note what differs, once."""
        if text not in self.notes:
            self.notes.append(text)

    def rules(self, name: str, model: int | None = None) -> list[Gradient]:
        """Return the rules of a parameter, for all models or for one."""
        self.used.add(name)
        own = [] if model is None else [self.own[model]]
        return rules_of(name, [*own, *self.scopes])

    def shared(self, name: str, default: float) -> list[Gradient]:
        """Return the rules of a parameter that holds for all models."""
        if any(name in own for own in self.own):
            self.note(f"{name} of a single model counts for nothing in mergekit")
        return with_default(self.rules(name), default)

    def number(self, name: str, default: float) -> float:
        """Return the value of a parameter that holds for all models and tensors."""
        try:
            return constant(name, self.shared(name, default), default)
        except Unreadable as error:
            self.refuse(error)
            return default

    def flag(self, name: str, default: bool) -> bool:
        """Return a switch."""
        return bool(self.number(name, default))

    def weights(self) -> list[list[Gradient]]:
        """Return the rules for the weight of each model."""
        found = []
        for number, model in enumerate(self.models):
            rules = self.rules("weight", number)
            if not rules:
                raise Unreadable(f"weight: none for {model}")
            found.append(rules)
        return found

    def shares(self) -> list[list[Gradient]]:
        """Return the rules for the weights over their sum."""
        return combined("weight", self.weights(), self.layers, _shares)

    def values(self, name: str, rules: Rules) -> float | dict[str, Any]:
        """Return values per module, as recipes have them."""
        return values_of_rules(name, rules, self.layers)


@dataclass
class Counterpart:
    """The counterpart of a merge.

    Args:
        step: parameters of a `merge`.
        weights: of its models.
        pruned: number of a model → parameters of a `merge` that prunes its change before, and the
            weight of that change in it; in float32, with the base beside it.
        beside_base: whether the base is an input, too: it changes nothing, but operators leave the
            change of one input alone.
    """

    step: dict[str, Any]
    weights: Sequence[Rules]
    pruned: Mapping[int, tuple[dict[str, Any], Rules]] = field(default_factory=dict)
    beside_base: bool = False


def _shares(values: Sequence[float]) -> list[float]:
    total = sum(values)
    if total == 0:
        raise Unreadable("weight: weights that sum to 0 cannot be normalised")
    return [value / total for value in values]


def on_base(merge: TheirMerge) -> dict[str, Any]:
    """Return the base of the changes, and leave it out of what is merged."""
    if merge.base is None:
        raise Unreadable(f"base_model: {merge.method} needs one")
    kept = [number for number, model in enumerate(merge.models) if model != merge.base]
    merge.models = [merge.models[number] for number in kept]
    merge.own = [merge.own[number] for number in kept]
    return {"base": merge.base}


def ones(merge: TheirMerge, value: float = 1.0) -> list[list[Gradient]]:
    """Return the same weight for every model."""
    return [[Gradient(None, (value,))] for _ in merge.models]


def _linear(merge: TheirMerge) -> Counterpart:
    if merge.flag("normalize", True):
        return Counterpart({}, merge.shares())
    weights = merge.weights()
    combined("weight", weights, merge.layers, _require_one)
    return Counterpart({}, weights)


def _require_one(values: Sequence[float]) -> Sequence[float]:
    if abs(sum(values) - 1.0) > 1e-6:
        raise Unreadable("normalize: false, and weights without a base must sum to 1")
    return values


def _slerp(merge: TheirMerge) -> Counterpart:
    if merge.base not in merge.models or len(merge.models) != 2:
        raise Unreadable("slerp needs two models, one of them base_model")
    share = merge.rules("t")
    if not share:
        raise Unreadable("t: it has no value")
    rest = [Gradient(rule.part, tuple(1 - value for value in rule.values)) for rule in share]
    first = merge.models[0] == merge.base
    merge.note("mergekit goes straight between models whose cosine is above 0.9995")
    return Counterpart({"method": "slerp"}, [rest, share] if first else [share, rest])


def _nuslerp(merge: TheirMerge) -> Counterpart:
    base = on_base(merge) if merge.base is not None else {}
    if len(merge.models) != 2:
        raise Unreadable("nuslerp needs two models")
    flat, columns = merge.flag("nuslerp_flatten", True), merge.flag("nuslerp_row_wise", False)
    if columns and not flat:
        raise Unreadable("nuslerp_row_wise: true takes columns of weights; here are rows")
    return Counterpart(base | {"method": "slerp" if flat else "nuslerp"}, merge.shares())


def _sce(merge: TheirMerge) -> Counterpart:
    step = on_base(merge) | {"method": "sce", "scale": "literal"}
    share = merge.shared("select_topk", 1.0)
    if any(value <= 0 for rule in share for value in rule.values):
        raise Unreadable("select_topk: 0 selects nothing")
    if len(merge.models) == 1 and any(value < 1 for rule in share for value in rule.values):
        raise Unreadable("select_topk: nothing varies in a single model")
    (share,) = combined("select_topk", [share], merge.layers, lambda v: [min(v[0], 1.0)])
    return Counterpart(step | {"select": merge.values("select_topk", share)}, ones(merge))


def _model_stock(merge: TheirMerge) -> Counterpart:
    step = on_base(merge) | {"method": "model-stock"}
    if merge.flag("filter_wise", False):
        raise Unreadable("filter_wise: true; here a tensor is one vector")
    return Counterpart(step, ones(merge))


def _karcher(merge: TheirMerge) -> Counterpart:
    merge.used |= {"max_iter", "tol"}  # steps until the mean stands still here
    return Counterpart({"method": "karcher"}, ones(merge, 1 / len(merge.models)))


METHODS: Mapping[str, Callable[[TheirMerge], Counterpart]] = {
    "linear": _linear,
    "slerp": _slerp,
    "nuslerp": _nuslerp,
    "karcher": _karcher,
    "sce": _sce,
    "model_stock": _model_stock,
}
