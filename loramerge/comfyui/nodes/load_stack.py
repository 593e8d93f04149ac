"""Load LoRA stack: several adapters, each with a slider for its weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loramerge.algebra.weights import Weight
from loramerge.comfyui.node import NOTHING, Node, NodeInput, NodeOutput
from loramerge.comfyui.places import adapters, path_of_adapter, state_of
from loramerge.comfyui.running import Stack
from loramerge.steps.inputs import read_adapter

__all__ = ["NODE"]

_COUNT = 4


def _run(stack: Stack | None = None, **given: Any) -> tuple[Stack]:
    found = [
        (read_adapter(path_of_adapter(name)), Weight(weight)) for name, weight in _chosen(given)
    ]
    return ((*(stack or ()), *found),)


def _fingerprint(given: Mapping[str, Any]) -> object:
    names = (given.get(f"adapter_{n}") for n in range(1, _COUNT + 1))
    chosen = [
        name for name in names if isinstance(name, str) and name != NOTHING
    ]  # not linked ones
    return [state_of(path_of_adapter(name)) for name in chosen]


def _chosen(given: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the adapters that are chosen, with their weights; those of weight 0 are left out."""
    slots = [(given[f"adapter_{n}"], float(given[f"weight_{n}"])) for n in range(1, _COUNT + 1)]
    return [(name, weight) for name, weight in slots if name != NOTHING and weight != 0.0]


def _slots() -> tuple[NodeInput, ...]:
    found = []
    for n in range(1, _COUNT + 1):
        found += [
            NodeInput(
                kind="choice",
                name=f"adapter_{n}",
                help="A file in models/loras, or none.",
                default=NOTHING,
                choices=lambda: (NOTHING, *adapters()),
            ),
            NodeInput(
                kind="number",
                name=f"weight_{n}",
                help="Its weight: 1 is as trained, 0 leaves it out, below 0 it is subtracted.",
                default=1.0,
                least=-2.0,
                most=2.0,
                step=0.05,
                slider=True,
            ),
        ]
    return tuple(found)


NODE = Node(
    name="LoramergeLoadStack",
    title="Load LoRA stack",
    help="Choose up to four adapters of models/loras and their weights. Chain several nodes for more.",
    inputs=(
        *_slots(),
        NodeInput(
            kind="stack", name="stack", help="Adapters that come before these.", optional=True
        ),
    ),
    outputs=(NodeOutput("stack", "stack", "The adapters with their weights."),),
    run=_run,
    fingerprint=_fingerprint,
    order=20,
)
