"""Inspect: what an adapter is, as text and as a picture of its blocks."""

from __future__ import annotations

from typing import Any

from loramerge.adapter import Adapter
from loramerge.comfyui.node import Node, NodeInput, NodeOutput, report_output
from loramerge.comfyui.picture import blocks_of, image_tensor
from loramerge.comfyui.running import listener, report_of
from loramerge.report.bars import bars
from loramerge.steps.parameters import Context
from loramerge.verbs.inspect import Inspect, Inspected, inspect_adapter

__all__ = ["NODE"]

_HIDDEN = ("table", "metadata", "findings", "hashes", "base", "error", "checked", "loads_otherwise")


def _run(adapter: Adapter) -> tuple[str, Any]:
    parameters = Inspect(files=(), deep=True, modules=True)
    found = inspect_adapter(adapter, parameters, Context(notify=listener()))
    title = f"{found.family or 'unknown family'}, {found.modules} modules: ‖ΔW‖ of each block"
    picture = bars(blocks_of(adapter, found.table or []), title)
    return _text(found), image_tensor(picture)


def _text(found: Inspected) -> str:
    problems = [
        f"{one.severity}: {one.module + ': ' if one.module else ''}{one.message}"
        for one in found.findings
    ]
    return "\n".join([report_of(found, _HIDDEN), *(problems or ["No problems found."])])


NODE = Node(
    name="LoramergeInspect",
    title="Inspect LoRA",
    help="Show family, kinds, ranks, trigger words and problems of an adapter, and how much it changes "
    "in each block.",
    inputs=(NodeInput(kind="adapter", name="adapter", help="The adapter."),),
    outputs=(
        report_output(),
        NodeOutput(
            "image",
            "picture",
            "Norm of ΔW in each block. Connect it to Preview Image.",
        ),
    ),
    run=_run,
    order=55,
)
