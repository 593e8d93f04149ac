"""The verbs that recipes know: every module of `verbs/` that defines one, found when first asked for."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module

import loramerge.verbs
from loramerge.steps.parameters import Verb

__all__ = ["known_verbs"]


@cache
def known_verbs() -> Mapping[str, Verb]:
    """Return name → verb, by name."""
    names = sorted(info.name for info in pkgutil.iter_modules(loramerge.verbs.__path__))
    modules = (import_module(f"{loramerge.verbs.__name__}.{name}") for name in names)
    found = (getattr(module, "VERB", None) for module in modules)
    return {verb.name: verb for verb in found if isinstance(verb, Verb)}
