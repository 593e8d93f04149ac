"""Lists of values in a step, where each value gives a result of its own: `rank: [4, 8, 16]`.

Such a list is a sweep of a variable that has the parameter's name, so that `save: r${rank}.safetensors`
tells the files apart, and steps that use the step run for each of its results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from loramerge.recipe.mistakes import Mistakes
from loramerge.recipe.step import Step
from loramerge.recipe.variables import Case, substitute

__all__ = ["with_series"]


def with_series(
    steps: Mapping[str, Step],
    cases: Sequence[Case],
    variables: Mapping[str, Any],
    mistakes: Mistakes,
) -> tuple[dict[str, Step], list[dict[str, Any]]]:
    """Return steps with variables instead of such lists, and the cases of the sweep with them.

    Args:
        cases: of the recipe's own sweep.
        variables: those of `vars`.
    """
    taken = {*variables, *(name for case in cases for name in case)}
    found: dict[str, Any] = {}
    changed = dict(steps)
    for name, step in steps.items():
        for word in step.verb.series:
            place = (*step.place, step.verb.name, word)
            values = step.content.get(word)
            if not isinstance(values, list) or not values:
                continue
            values = substitute(values, place, variables, mistakes)
            if word in taken:
                problem = (
                    f"a list here is a sweep of {word!r}, which is a variable of the recipe, too"
                )
                mistakes.add(place, problem, f'{word}: "${{{word}}}"')
            elif found.setdefault(word, values) != values:
                problem = f"two steps have different lists of {word!r}"
                mistakes.add(place, problem, "state variables with two names under sweep")
            content = {**changed[name].content, word: f"${{{word}}}"}
            changed[name] = replace(changed[name], content=content)
    combined = [
        {**case, **dict(zip(found, values, strict=True))}
        for case in cases
        for values in product(*found.values())
    ]
    return changed, combined
