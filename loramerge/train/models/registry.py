"""The architectures that can be trained and drawn with: every file of `architectures/`, and plug-ins.

A package adds its own by an entry point of the group `loramerge.architectures` that gives an
`Architecture`.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from loramerge.train.models import architectures
from loramerge.train.models.architecture import Architecture

__all__ = ["architecture_of_denoiser", "architecture_of_family", "architecture_of_pipeline",
           "known_architectures"]  # fmt: skip

_GROUP = "loramerge.architectures"
_DEFAULT = "sd"  # how a denoiser of an unknown class is called


@cache
def known_architectures() -> tuple[Architecture, ...]:
    """Return all architectures: those of this package by name, then those of others."""
    names = sorted(info.name for info in pkgutil.iter_modules(architectures.__path__))
    own = (import_module(f"{architectures.__name__}.{name}").ARCHITECTURE for name in names)
    return (*own, *(point.load() for point in entry_points(group=_GROUP)))


def architecture_of_pipeline(name: object) -> Architecture | None:
    """Return the architecture that a model_index.json names."""
    return next((one for one in known_architectures() if name in one.pipelines), None)


def architecture_of_family(name: str | None) -> Architecture | None:
    """Return the architecture of single files of a family."""
    return next((one for one in known_architectures() if name in one.families), None)


def architecture_of_denoiser(denoiser: Any) -> Architecture:
    """Return the architecture of a denoiser by its class; SD1 for an unknown class."""
    found = {one.class_name: one for one in reversed(known_architectures())}
    usual = next(one for one in known_architectures() if one.name == _DEFAULT)
    return found.get(type(denoiser).__name__, usual)
