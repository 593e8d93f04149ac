"""The steps of a recipe as they are written, before variables have values and names are resolved."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from loramerge.habits import advice_on_command
from loramerge.recipe.mistakes import Mistakes, Place
from loramerge.recipe.registry import known_verbs
from loramerge.recipe.variables import variables_in
from loramerge.steps.parameters import Parameter, Verb

__all__ = ["FORBIDDEN_IN_NAMES", "Step", "read_steps"]

FORBIDDEN_IN_NAMES = ":/\\[]{}"  # of steps and inputs: they would read as weights, paths or cases


@dataclass(frozen=True)
class Step:
    """A step as the recipe states it.

    Args:
        content: the verb's parameters, as YAML has them.
        save: the value of `save`, None where the step has none.
        place: of the step in the recipe.
    """

    name: str
    verb: Verb
    content: Mapping[str, Any]
    save: Any
    place: Place

    @property
    def variables(self) -> set[str]:
        """Names of the variables that it uses itself."""
        return {*variables_in(self.content), *variables_in(self.save)}

    def at(self, parameter: Parameter) -> Place:
        """Return the place of a parameter."""
        return (*self.place, self.verb.name, parameter.word)


def read_steps(content: Any, inputs: Collection[str], mistakes: Mistakes) -> dict[str, Step]:
    """Return the steps by name; those that cannot be understood are noted and left out.

    Args:
        content: what stands under `steps`.
        inputs: names of the recipe's inputs, which steps may not have.
    """
    if not isinstance(content, Mapping) or not content:
        mistakes.add(("steps",), "steps must be a mapping of names to steps, with at least one")
        return {}
    found = {}
    for name, fields in content.items():
        place: Place = ("steps", name)
        if not name.strip() or any(c in name for c in FORBIDDEN_IN_NAMES):
            mistakes.add(
                place,
                f"{name!r} is not a valid name of a step",
                f"a name has at least one letter, and none of {' '.join(FORBIDDEN_IN_NAMES)}",
            )
        if name in inputs:
            mistakes.add(place, f"an input has the name {name!r}, too")
        step = _step(name, fields, place, mistakes)
        if step is not None:
            found[name] = step
    return found


def _step(name: str, fields: Any, place: Place, mistakes: Mistakes) -> Step | None:
    verbs = known_verbs()
    if not isinstance(fields, Mapping):
        mistakes.add(place, f"a step must be a mapping with one of {', '.join(verbs)}")
        return None
    words = [word for word in fields if word != "save"]
    for word in words:
        if word not in verbs:
            hint = advice_on_command(word, (*verbs, "save")) or f"steps are {', '.join(verbs)}"
            mistakes.add((*place, word), f"there is no step {word!r}", hint)
    known = [word for word in words if word in verbs]
    if len(known) != 1:
        if len(known) > 1 or not words:
            problem = f"a step does exactly one thing, and {name!r} does {len(known) or 'nothing'}"
            mistakes.add(place, problem, f"give it one of {', '.join(verbs)}")
        return None
    verb, content = verbs[known[0]], fields[known[0]]
    if not isinstance(content, Mapping):
        problem = f"{verb.name} takes a mapping of parameters to values"
        mistakes.add((*place, verb.name), problem)
        return None
    if verb.gives in ("checkpoint", "picture", "document") and fields.get("save") is None:
        mistakes.add(place, f"{verb.name} always writes a file, but the step names none",
                     "add save: FILE")  # fmt: skip
    return Step(name, verb, content, fields.get("save"), place)
