"""The routes of the page, one module for each part of it; each has `ROUTES`."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from starlette.routing import BaseRoute

__all__ = ["routes"]


def routes() -> list[BaseRoute]:
    """Return the routes of all modules here, by their names."""
    found: list[BaseRoute] = []
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda one: one.name):
        found += import_module(f"{__name__}.{info.name}").ROUTES
    return found
