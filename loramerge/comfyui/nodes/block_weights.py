"""Block weights: an adapter with a weight per block, component or module, added to a stack."""

from __future__ import annotations

from loramerge.adapter import Adapter
from loramerge.algebra.blocks import PRESETS
from loramerge.comfyui.node import NOTHING, Node, NodeInput, NodeOutput
from loramerge.comfyui.running import Stack, weight_from
from loramerge.errors import UsageError

__all__ = ["NODE"]


def _run(adapter: Adapter, preset: str, weights: str, stack: Stack | None = None) -> tuple[Stack]:
    if preset != NOTHING and weights.strip():
        raise UsageError(
            "a preset and weights are given, but only one of them counts",
            hint="choose none as the preset, or empty weights",
        )
    weight = weight_from(weights if preset == NOTHING else preset)
    weight.on(adapter)  # refuses blocks that the adapter does not have
    return ((*(stack or ()), (adapter, weight)),)


NODE = Node(
    name="LoramergeBlockWeights",
    title="Block weights",
    help="Give an adapter a weight for each block, component or module, and add it to a stack.",
    inputs=(
        NodeInput(kind="adapter", name="adapter", help="The adapter."),
        NodeInput(
            kind="choice",
            name="preset",
            help="Block weights by name, as in LoRA Block Weight; none: those of the text below.",
            default=NOTHING,
            choices=lambda: (NOTHING, *PRESETS),
        ),
        NodeInput(
            kind="lines",
            name="weights",
            help="0.8 for all, unet=0.8:te=0 for components, 12 to 61 numbers for blocks (1,0,0,…), or "
            "for modules as in a recipe, {default: 1, match: {'*attn2*': 0.5}}. Nothing: 1.",
            default="",
        ),
        NodeInput(kind="stack", name="stack", help="Adapters that come before it.", optional=True),
    ),
    outputs=(NodeOutput("stack", "stack", "The adapters with their weights."),),
    run=_run,
    order=30,
)
