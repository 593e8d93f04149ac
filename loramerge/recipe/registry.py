"""The verbs that can be steps of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from loramerge import verbs
from loramerge.steps.parameters import Verb

__all__ = ["known_verbs"]


@cache
def known_verbs() -> Mapping[str, Verb]:
    """Return name → verb, by name; those that other packages add come last."""
    return {name: verb for name, verb in verbs.known_verbs().items() if verb.in_recipes}
