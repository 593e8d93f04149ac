"""Stand-ins for what a program imports and its key matching never calls."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from typing import Any


class _Named(type):
    """Classes in which every name is again an empty class."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _empty(name)
        setattr(cls, name, made)
        return made


def _empty(name: str) -> Any:
    return _Named(name, (), {"__init__": lambda self, *args, **named: None})


class _Anything(types.ModuleType):
    """A module in which every name is an empty class."""

    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _empty(name)
        setattr(self, name, made)
        return made


class _Finder:
    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not any(f"{name}.".startswith(f"{held}.") for held in self.names):
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def stub(*names: str) -> None:
    """Let these modules be empty where they are not installed."""
    missing = [n for n in names if "." in n or importlib.util.find_spec(n) is None]
    sys.meta_path.insert(0, _Finder(missing))  # type: ignore[arg-type]
