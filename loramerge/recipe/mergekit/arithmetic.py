"""Methods of mergekit that prune the change of each model, elect signs or not, and add.

One merge here does that where one operator does and all models are pruned alike. Otherwise each change
is pruned by a merge of its own, in float32, and another adds them.

Source: mergekit 0.1.5, `merge_methods/generalized_task_arithmetic.py` and `sparsify.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from loramerge.recipe.mergekit.gradients import (
    Gradient,
    Rules,
    Unreadable,
    combined,
    with_default,
)
from loramerge.recipe.mergekit.methods import Counterpart, TheirMerge, on_base

__all__ = ["METHODS"]

_ONE = (Gradient(None, (1.0,)),)


@dataclass(frozen=True)
class _Pruning:
    """A way to prune entries.

    Args:
        operator: that prunes each change and adds them.
        settings: function of the merge and of a model that gives rules of its parameters.
        rescales: whether what is kept can be rescaled, and whether it can be left alone.
    """

    operator: str
    settings: Callable[[TheirMerge, int], dict[str, Rules]]
    rescales: tuple[bool, bool]


def _density(merge: TheirMerge, model: int) -> Rules:
    """Return the rules of a density between 0 and 1."""
    rules = with_default(merge.rules("density", model), 1.0)
    if any(value <= 0 for rule in rules for value in rule.values):
        raise Unreadable("density: 0 leaves nothing; leave out the model")
    return rules


def _together(
    merge: TheirMerge, rules: Sequence[Rules], combine: Callable[[Sequence[float]], Sequence[float]]
) -> list[list[Gradient]]:
    return combined("density", rules, merge.layers, combine)


def _magnitude(merge: TheirMerge, model: int) -> dict[str, Rules]:
    (density,) = _together(merge, [_density(merge, model)], lambda v: [min(v[0], 1.0)])
    return {"density": density}


def _outliers(merge: TheirMerge, model: int) -> dict[str, Rules]:
    gamma = with_default(merge.rules("gamma", model), 0.01)

    def both(values: Sequence[float]) -> list[float]:
        density, share = min(values[0], 1.0), values[1]  # of density 1 mergekit leaves out nothing
        return [density, round(min(share, 1.0 - density), 12)]

    density, gamma = _together(merge, [_density(merge, model), gamma], both)
    return {"density": density, "gamma": gamma}


def _by_rank(merge: TheirMerge, model: int) -> dict[str, Rules]:
    epsilon = with_default(merge.rules("epsilon", model), 0.15)

    def both(values: Sequence[float]) -> list[float]:
        density, width = min(values[0], 1.0), values[1]
        return [density, 2 * width if density < 1 else 0.0]  # to either side there, end to end here

    density, epsilon = _together(merge, [_density(merge, model), epsilon], both)
    return {"density": density, "epsilon": epsilon}


_LARGEST = _Pruning("magnitude-prune", _magnitude, (False, True))
_RANDOM = _Pruning("dare", _magnitude, (True, True))
_OUTLIERS = _Pruning("breadcrumbs", _outliers, (False, True))
_RANKED = _Pruning("della", _by_rank, (True, False))


@dataclass(frozen=True)
class _Arithmetic:
    """A method.

    Args:
        pruning: None leaves changes whole.
        elects: whether entries of the minority's sign are left out.
        operator: that does both at once, None where there is none.
        normalize, rescale: defaults of these parameters.
    """

    pruning: _Pruning | None
    elects: bool
    operator: str | None
    normalize: bool = False
    rescale: bool = False


def _found(method: _Arithmetic, merge: TheirMerge) -> Counterpart:
    step = on_base(merge)
    normalize = merge.flag("normalize", method.normalize)
    rescale = merge.flag("rescale", method.rescale)
    pruning = method.pruning
    settings: list[dict[str, Rules]] = [{} for _ in merge.models]
    if pruning is not None:
        _check_rescaling(merge, pruning, rescale)
        settings = [pruning.settings(merge, number) for number in range(len(merge.models))]
    elif any("density" in scope for scope in (*merge.own, *merge.scopes)):
        merge.used.add("density")
        merge.note(f"density counts for nothing in {merge.method}")
    over_sum = normalize and not method.elects
    weights: Sequence[Rules] = merge.shares() if over_sum else merge.weights()
    if method.elects and normalize:
        _require_positive(weights)
    alike = all(one == settings[0] for one in settings[1:])
    factor: Rules = _ONE  # of each change, where what is kept is not rescaled
    if alike and settings and pruning is _RANDOM and not rescale:
        factor = settings[0]["density"]
    at_once = (
        alike and method.operator is not None
        and (_is_one(factor) or not (method.elects and normalize) or _is_constant(factor))
    )  # fmt: skip
    pruned: dict[int, tuple[dict[str, Any], Rules]] = {}
    if at_once:
        step |= {} if method.operator == "linear" else {"method": method.operator}
        own = settings[0] if settings else {}
    else:
        assert pruning is not None
        for number, one in enumerate(settings):
            given = {name: merge.values(name, rules) for name, rules in one.items()}
            kept = one["density"] if pruning is _RANDOM and not rescale else _ONE
            first = {"base": merge.base, "method": pruning.operator, "scale": "literal", **given}
            pruned[number] = first | _plain(pruning), kept
        step |= {"method": "ties"} if method.elects else {}
        own = {"density": _ONE} if method.elects else {}
        factor = _ONE
    weights, scale = _scaled(merge, weights, factor, keeps=method.elects and normalize)
    if scale is not None:
        step["scale"] = scale
    elif "method" in step:
        step["scale"] = "literal"
    step |= {name: merge.values(name, rules) for name, rules in own.items()}
    if method.elects or (at_once and method.operator == "della"):
        step["divide_by"] = "weights" if normalize else "none"
    alone = len(weights) == 1 or any(
        value == 0 for rules in weights for rule in rules for value in rule.values
    )
    return Counterpart(step, weights, pruned, beside_base=pruning is not None and at_once and alone)


def _plain(pruning: _Pruning) -> dict[str, str]:
    """Return the settings by which an operator adds what it prunes, and elects nothing."""
    return {"divide_by": "none"} if pruning is _RANKED else {}


def _scaled(
    merge: TheirMerge, weights: Sequence[Rules], factor: Rules, *, keeps: bool
) -> tuple[Sequence[Rules], float | None]:
    """Return the weights and the final scale, by mergekit's λ and a factor of the changes.

    What differs between tensors becomes part of the weights.

    Args:
        keeps: whether the result stays the same where all weights grow alike.

    Raises:
        Unreadable: if it differs, and would change nothing there.
    """
    both = [merge.shared("lambda", 1.0), factor]
    (scale,) = combined("lambda", both, merge.layers, lambda v: [v[0] * v[1]])
    if any(value == 0 for rule in scale for value in rule.values):
        raise Unreadable("lambda: 0 leaves the base")
    if _is_constant(scale):
        value = scale[0].values[0]
        return weights, None if value == 1.0 else value
    if keeps:
        raise Unreadable("lambda: other values for some tensors, with normalized weights")
    if any(value < 0 for rule in scale for value in rule.values):
        raise Unreadable("lambda: negative values for some tensors")
    many = combined("weight", [*weights, scale], merge.layers,
                    lambda v: [one * v[-1] for one in v[:-1]])  # fmt: skip
    return many, None


def _is_constant(rules: Rules) -> bool:
    return len({value for rule in rules for value in rule.values}) == 1


def _is_one(rules: Rules) -> bool:
    return {value for rule in rules for value in rule.values} == {1.0}


def _check_rescaling(merge: TheirMerge, pruning: _Pruning, rescale: bool) -> None:
    """Refuse a rescaling that the operators here do not do, or always do.

    Raises:
        Unreadable: naming it.
    """
    can, need_not = pruning.rescales
    if rescale and not can:
        raise Unreadable("rescale: true, for entries that are not chosen at random")
    if not rescale and not need_not:
        raise Unreadable("rescale: false, where entries are kept with several probabilities")
    if rescale and any(
        value < 1
        for number in range(len(merge.models))
        for rule in merge.rules("density", number)
        for value in rule.values
    ):
        merge.note(
            "what is kept is divided by the density, as in the paper; mergekit brings it to the sum "
            "of sizes before, and draws other numbers"
        )


def _require_positive(weights: Sequence[Rules]) -> None:
    """Refuse weights whose sum may vanish where entries are divided by it.

    Raises:
        Unreadable: if one is negative.
    """
    if any(value < 0 for rules in weights for rule in rules for value in rule.values):
        raise Unreadable("weight: negative weights with normalize, whose sum may vanish")


_TABLE: Mapping[str, _Arithmetic] = {
    "task_arithmetic": _Arithmetic(None, False, "linear"),
    "ties": _Arithmetic(_LARGEST, True, "ties", normalize=True),
    "dare_linear": _Arithmetic(_RANDOM, False, "dare", rescale=True),
    "dare_ties": _Arithmetic(_RANDOM, True, "dare-ties", rescale=True),
    "breadcrumbs": _Arithmetic(_OUTLIERS, False, "breadcrumbs"),
    "breadcrumbs_ties": _Arithmetic(_OUTLIERS, True, None),
    "della": _Arithmetic(_RANKED, True, "della", normalize=True, rescale=True),
    "della_linear": _Arithmetic(_RANKED, False, None, rescale=True),
}

METHODS: Mapping[str, Callable[[TheirMerge], Counterpart]] = {
    name: partial(_found, method) for name, method in _TABLE.items()
}
