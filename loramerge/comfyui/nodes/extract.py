"""Extract: the difference of two checkpoints as an adapter."""

from __future__ import annotations

from typing import Any

from loramerge.adapter import Adapter
from loramerge.comfyui.node import Node, NodeInput, adapter_output, report_output
from loramerge.comfyui.parameters import options_slot, slots_of, values_of
from loramerge.comfyui.places import bases, path_of_base
from loramerge.comfyui.running import references, report_of, result_of
from loramerge.verbs.extract import Extract

__all__ = ["NODE"]

_WORDS = ("rank", "energy", "max_size", "max_error", "full", "vectors")


def _run(tuned: str, base: str, **given: Any) -> tuple[Adapter, str]:
    values = values_of(Extract, _WORDS, given)
    places = {"tuned": path_of_base(tuned), "base": path_of_base(base)}
    _, context = references([])
    _, result = result_of("extract", {**values, **places}, context)
    return result.adapter, report_of(result)


NODE = Node(
    name="LoramergeExtract",
    title="Extract LoRA",
    help="Make an adapter of what a checkpoint changed of the one that it was tuned from.",
    inputs=(
        NodeInput(kind="choice", name="tuned", help="Checkpoint that was tuned.", choices=bases),
        NodeInput(
            kind="choice", name="base", help="Checkpoint that it was tuned from.", choices=bases
        ),
        *slots_of(Extract, *_WORDS),
        options_slot(Extract, "skip_missing: [text_encoder]"),
    ),
    outputs=(adapter_output("The difference, as an adapter."), report_output()),
    run=_run,
    order=60,
)
