"""Resize: the best approximation of an adapter at lower ranks."""

from __future__ import annotations

from typing import Any

from loramerge.adapter import Adapter
from loramerge.comfyui.computing import computed
from loramerge.comfyui.node import Node, NodeInput, adapter_output, report_output
from loramerge.comfyui.parameters import options_slot, slots_of
from loramerge.verbs.resize import Resize

__all__ = ["NODE"]

_WORDS = ("rank", "energy", "ratio", "max_size", "max_error", "base")


def _run(adapter: Adapter, **given: Any) -> tuple[Adapter, str]:
    return computed(Resize, _WORDS, given, "adapter", [adapter])


NODE = Node(
    name="LoramergeResize",
    title="Resize LoRA",
    help="Lower the ranks of an adapter with the smallest error. Give one of the criteria.",
    inputs=(
        NodeInput(kind="adapter", name="adapter", help="The adapter."),
        *slots_of(Resize, *_WORDS),
        options_slot(Resize, "conv_rank: 4"),
    ),
    outputs=(adapter_output("The adapter at its new ranks."), report_output()),
    run=_run,
    order=50,
)
