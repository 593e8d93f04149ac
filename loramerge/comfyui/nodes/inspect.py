"""Inspect: what an adapter is, as text and as a picture of its blocks."""

from __future__ import annotations

from typing import Any

from loramerge.adapter import Adapter
from loramerge.comfyui.node import Node, NodeInput, NodeOutput, report_output
from loramerge.comfyui.running import listener, report_of
from loramerge.report.bars import picture_of_bars
from loramerge.report.blocks import norm_bars, of_rows
from loramerge.steps.parameters import Context
from loramerge.verbs.inspect import Inspect, Inspected, inspect_adapter

__all__ = ["NODE"]

_HIDDEN = ("table", "metadata", "findings", "hashes", "base", "error", "checked", "loads_otherwise")


def _run(adapter: Adapter) -> tuple[str, Any]:
    parameters = Inspect(files=(), deep=True, modules=True)
    found = inspect_adapter(adapter, parameters, Context(notify=listener()))
    title = f"{found.family or 'unknown family'}, {found.modules} modules: ‖ΔW‖ of each block"
    figure = norm_bars({"norm": of_rows(found.table or [])})
    return _text(found), _tensor(picture_of_bars(figure, title))


def _tensor(picture: Any) -> Any:
    """Return a picture of Pillow as an image of ComfyUI.

    Returns:
        float32 of shape `(1, height, width, 3)`, from 0 to 1.
    """
    import numpy as np
    import torch

    values = np.asarray(picture.convert("RGB"), np.float32) / 255.0
    return torch.from_numpy(values)[None]


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
