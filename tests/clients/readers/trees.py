"""Modules of the names and narrow shapes of a checkpoint, for programs that walk over a network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from job import base_of, narrow

torch: Any = import_module("torch")


def layer(shape: tuple[int, ...], bias: bool) -> Any:
    """A layer of the sort that weights of a shape belong to."""
    if len(shape) == 5:
        return torch.nn.Conv3d(shape[1], shape[0], shape[2:], bias=bias)
    if len(shape) == 4:
        return torch.nn.Conv2d(shape[1], shape[0], shape[2], bias=bias)
    if len(shape) == 2:
        return torch.nn.Linear(shape[1], shape[0], bias=bias)
    return torch.nn.LayerNorm(shape[0])


def put(root: Any, path: str, module: Any, classes: Mapping[str, str] = {}) -> None:
    """Put a module at a path; `classes` are patterns of paths → what modules there are of."""
    *above, last = path.split(".")
    walked = []
    for name in above:
        walked.append(name)
        if name not in root._modules:
            here = ".".join(walked)
            named = next((c for p, c in classes.items() if re.fullmatch(p, here)), "Module")
            root.add_module(name, type(named, (torch.nn.Module,), {})())
        root = root._modules[name]
    root.add_module(last, module)


def tree(shapes: Mapping[str, tuple[int, ...]], classes: Mapping[str, str]) -> Any:
    """The modules of tensors, with the weights of the base."""
    root = torch.nn.Module()
    for name, shape in shapes.items():
        path, _, word = name.rpartition(".")
        if word == "weight":
            made = layer(narrow(shape), f"{path}.bias" in shapes)
            made.weight.data = torch.from_numpy(base_of(name, narrow(shape)))
            put(root, path, made, classes)
    return root
