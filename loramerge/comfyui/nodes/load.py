"""Load LoRA: one adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loramerge.adapter import Adapter
from loramerge.comfyui.node import NOTHING, Node, NodeInput, adapter_output
from loramerge.comfyui.places import adapters, path_of_adapter, state_of
from loramerge.errors import UsageError
from loramerge.steps.inputs import read_adapter

__all__ = ["NODE"]


def _run(adapter: str) -> tuple[Adapter]:
    if adapter == NOTHING:
        raise UsageError("no adapter is chosen", hint="choose a file of models/loras")
    return (read_adapter(path_of_adapter(adapter)),)


def _fingerprint(given: Mapping[str, Any]) -> object:
    name = given.get("adapter")
    return state_of(path_of_adapter(name)) if isinstance(name, str) else None  # None if linked


NODE = Node(
    name="LoramergeLoad",
    title="Load LoRA (adapter)",
    help="Read an adapter of any dialect from models/loras. Weights are read when they are needed.",
    inputs=(
        NodeInput(kind="choice", name="adapter", help="A file in models/loras.", choices=adapters),
    ),
    outputs=(adapter_output("The adapter, to resize, inspect, mix or save."),),
    run=_run,
    fingerprint=_fingerprint,
    order=10,
)
