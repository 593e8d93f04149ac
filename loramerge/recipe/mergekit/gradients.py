"""Parameters of mergekit: values with filters on names of tensors, and gradients over layers.

A setting is a number, a list of numbers that go from the first layer to the last, or a list of
`{filter, value}`, of which the first whose filter occurs in a tensor's name counts. What lies in no
layer has the first value of a gradient. Here they become values per module, with patterns.

Source: mergekit 0.1.5, `config.evaluate_setting`, `parameter_resolver` and `plan.plan_slice`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Gradient",
    "Layers",
    "Rules",
    "Unreadable",
    "combined",
    "constant",
    "rules_of",
    "values_of_rules",
    "with_default",
]


class Unreadable(Exception):
    """A setting that has no counterpart, in words."""


@dataclass(frozen=True)
class Gradient:
    """The values of a parameter for some tensors.

    Args:
        part: text that occurs in their names; None for all.
        values: one, or several at equal steps from the first layer to the last.
    """

    part: str | None
    values: tuple[float, ...]

    def at(self, layer: int, layers: int) -> float:
        """Return the value in a layer, interpolated; in the only layer it is the last."""
        place = (layer / (layers - 1) if layers > 1 else 1.0) * (len(self.values) - 1)
        low = int(place)
        high, share = min(low + 1, len(self.values) - 1), place - low
        return (1 - share) * self.values[low] + share * self.values[high]


Rules = Sequence[Gradient]  # of which the first that fits a tensor counts


@dataclass(frozen=True)
class Layers:
    """The layers of a model.

    Args:
        count: their number, None where it is not known.
        word: what stands before their numbers in names of modules.
        numbered: whether their numbers are those of the models that the file names.
    """

    count: int | None
    word: str = "layers"
    numbered: bool = True

    def require(self, name: str) -> int:
        """Return their number, for the gradient of a parameter.

        Raises:
            Unreadable: if it is not known.
        """
        if self.count is None:
            raise Unreadable(
                f"{name}: a gradient needs the number of layers, and no model of the file is a folder "
                "here"
            )
        return self.count


def rules_of(name: str, scopes: Iterable[Mapping[str, Any] | None]) -> list[Gradient]:
    """Return the rules of a parameter, the first that fits a tensor counts.

    Args:
        scopes: parameters of a model, of its slice, of the file; earlier ones come first.

    Raises:
        Unreadable: if a value is not a number, or a filter cannot be a pattern on names of modules.
    """
    found: list[Gradient] = []
    for scope in scopes:
        for rule in _rules(name, (scope or {}).get(name)):
            found.append(rule)
            if rule.part is None:
                return found
    return found


def _rules(name: str, setting: Any) -> Iterator[Gradient]:
    if setting is None:
        return
    conditional = setting if isinstance(setting, list) else [setting]
    if not all(isinstance(one, Mapping) for one in conditional):
        yield Gradient(None, _numbers(name, setting))
        return
    for one in conditional:
        yield Gradient(_part(name, one.get("filter")), _numbers(name, one.get("value")))


def _part(name: str, part: Any) -> str | None:
    """Return the text of a filter that counts by names of modules, None for one that fits all."""
    text = "*" if part is None else str(part)
    if text in ("*", "", "."):
        return None
    if any(character in text for character in "*?[]") or _reaches_into_parameters(text):
        raise Unreadable(f"{name}: the filter {text!r}, which patterns on modules cannot express")
    return text


def _reaches_into_parameters(text: str) -> bool:
    """Return whether a filter may tell a module's weight from its bias."""
    ends = [text[place:] for place, character in enumerate(text[:-1]) if character == "."]
    return (
        "weight" in text
        or "bias" in text
        or any(".weight".startswith(end) or ".bias".startswith(end) for end in ends)
    )


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    try:
        found = tuple(float(one) for one in values)
    except (TypeError, ValueError):
        found = ()
    if not found or not all(map(math.isfinite, found)):
        raise Unreadable(f"{name}: {value!r} is not a number")
    return found


def with_default(rules: Sequence[Gradient], value: float) -> list[Gradient]:
    """Return rules that have a value for every tensor."""
    whole = bool(rules) and rules[-1].part is None
    return list(rules) if whole else [*rules, Gradient(None, (value,))]


def constant(name: str, rules: Rules, default: float) -> float:
    """Return the one value of a parameter, the default where it has none.

    Raises:
        Unreadable: if it differs from tensor to tensor.
    """
    if not rules:
        return default
    values = {value for rule in rules for value in rule.values}
    if len(values) > 1 or (rules[-1].part is not None and values != {default}):
        raise Unreadable(f"{name}: other values for some tensors; here it is one number")
    return values.pop()


def combined(
    name: str,
    several: Sequence[Rules],
    layers: Layers,
    combine: Callable[[Sequence[float]], Sequence[float]],
) -> list[list[Gradient]]:
    """Return rules after a function of the values of all, as normalising weights is.

    Args:
        several: rules, such as the weights of each model.
        combine: function of a value of each that returns as many values as there shall be rules.

    Raises:
        Unreadable: if their filters differ.
    """
    lists = {tuple(rule.part for rule in rules) for rules in several} - {(None,)}
    if len(lists) > 1:
        raise Unreadable(f"{name}: filters that differ from model to model")
    parts = lists.pop() if lists else (None,)
    found: list[list[Gradient]] = []
    for number, part in enumerate(parts):
        own = [rules[number] if len(rules) == len(parts) else rules[0] for rules in several]
        if all(len(rule.values) == 1 for rule in own):
            rows = [combine([rule.values[0] for rule in own])]
        else:
            count = layers.require(name)
            rows = [combine([rule.at(layer, count) for rule in own]) for layer in range(count)]
        found = found or [[] for _ in rows[0]]
        for place, rules in enumerate(found):
            rules.append(Gradient(part, tuple(row[place] for row in rows)))
    return found


def values_of_rules(name: str, rules: Rules, layers: Layers) -> float | dict[str, Any]:
    """Return the values per module that rules give, as recipes have them.

    Raises:
        Unreadable: if they cannot be expressed, or tensors are left without a value.
    """
    if not rules or rules[-1].part is not None:
        raise Unreadable(f"{name}: no value for the other tensors")
    default = rules[-1].values[0]
    match: dict[str, float] = {}
    for rule in reversed(rules):  # the first counts there, the last here
        for pattern, value in _patterns(name, rule, layers):
            match.pop(pattern, None)
            match[pattern] = value
    if not match or set(match.values()) == {default}:
        return default
    return {"default": default, "match": match}


def _patterns(name: str, rule: Gradient, layers: Layers) -> Iterator[tuple[str, float]]:
    """Yield patterns on names of modules with their values, the more general ones first.

    Raises:
        Unreadable: if a filter reads the numbers of layers, and those change or a gradient needs them.
    """
    part = rule.part
    if part is not None and not layers.numbered and any(map(str.isdigit, part)):
        raise Unreadable(f"{name}: the filter {part!r}, which reads numbers of layers that change")
    if part is not None:
        for pattern in _occurrences(part):
            yield pattern, rule.values[0]
    if len(set(rule.values)) > 1:
        if part is not None and (layers.word in part or part in f"model.{layers.word}."):
            raise Unreadable(f"{name}: a gradient for the filter {part!r}, which names layers")
        count = layers.require(name)
        for layer in range(count):
            for end in ["*"] if part is None else _occurrences(part):
                yield f"*{layers.word}.{layer}.{end}", round(rule.at(layer, count), 12)


def _occurrences(part: str) -> list[str]:
    """Return patterns for the modules in whose parameters' names a text occurs."""
    return [f"*{part}*", f"*{part[:-1]}"] if part.endswith(".") else [f"*{part}*"]
