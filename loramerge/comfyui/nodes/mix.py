"""Mix: combine the adapters of a stack by any merge operator."""

from __future__ import annotations

from typing import Any

from loramerge.adapter import Adapter
from loramerge.comfyui.computing import computed
from loramerge.comfyui.node import Node, NodeInput, adapter_output, report_output
from loramerge.comfyui.parameters import options_slot, slots_of
from loramerge.comfyui.running import Stack, require_adapters
from loramerge.verbs.mix import Mix

__all__ = ["NODE"]

_WORDS = (
    "method",
    "scale",
    "correction",
    "rank",
    "energy",
    "max_size",
    "max_error",
    "fair",
    "base",
)


def _run(stack: Stack, **given: Any) -> tuple[Adapter, str]:
    return computed(Mix, _WORDS, given, "adapters", require_adapters(stack))


NODE = Node(
    name="LoramergeMix",
    title="Mix LoRAs",
    help="Combine adapters with their weights: exactly (linear), or by another merge operator.",
    inputs=(
        NodeInput(kind="stack", name="stack", help="The adapters with their weights."),
        *slots_of(Mix, *_WORDS),
        options_slot(Mix, "density: 0.5"),
    ),
    outputs=(
        adapter_output("The mix, at weight 1: the weights of the stack are already applied."),
        report_output(),
    ),
    run=_run,
    order=40,
)
