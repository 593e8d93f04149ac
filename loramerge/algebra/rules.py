"""Values of an operator's parameter that differ between modules: `density` 0.3 here and 0.7 there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loramerge.algebra.per_module import PerModule, content_of, values_of
from loramerge.errors import UsageError
from loramerge.parameters import Parameter, checked

__all__ = ["rules_content", "rules_of"]


def rules_of(content: Mapping[str, Any], one: Parameter) -> PerModule[Any]:
    """Return the values of a parameter that a mapping states, in the form of a weight.

    Args:
        content: see `per_module.values_of`.

    Raises:
        UsageError: naming the rule whose value the parameter does not take.
    """

    def read(value: Any, rule: str) -> Any:
        named = one.word if rule == "default" else f"{one.word} ({rule})"
        return checked(replace(one, word=named), value)

    found: PerModule[Any] = PerModule(**values_of(content, one.word, ("value", "values"), read))
    if found.depth and one.kind is not float:
        raise UsageError(
            f"{one.word}: depth interpolates between numbers, and this parameter has other values",
            hint="give values per block or by patterns",
        )
    return found


def rules_content(content: Mapping[str, Any], one: Parameter) -> Any:
    """Return a mapping in the form that is recorded: a plain value where it is one for all modules.

    Raises:
        UsageError: see `rules_of`.
    """
    found = content_of(rules_of(content, one))
    return found["default"] if found.keys() == {"default"} else found
