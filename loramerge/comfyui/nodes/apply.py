"""Apply: adapters on a loaded model, without writing anything."""

from __future__ import annotations

from typing import Any

from loramerge.comfyui.live import apply
from loramerge.comfyui.node import Node, NodeInput, NodeOutput
from loramerge.comfyui.running import Stack, require_adapters

__all__ = ["NODE"]

_MISSING = ("refuse", "skip text encoders", "skip all")


def _run(stack: Stack, model: Any, missing: str, clip: Any = None) -> tuple[Any, Any]:
    return apply(
        require_adapters(stack),
        model,
        clip,
        skip=missing != "refuse",
        skip_denoiser=missing == "skip all",
    )


NODE = Node(
    name="LoramergeApply",
    title="Apply LoRAs to model",
    help="Add the adapters of a stack to a loaded model. Nothing is written. The weights are added when "
    "the model is used, as with Load LoRA.",
    inputs=(
        NodeInput(kind="stack", name="stack", help="The adapters with their weights."),
        NodeInput(kind="model", name="model", help="The diffusion model."),
        NodeInput(
            kind="choice",
            name="missing",
            help="What to do with modules of an adapter that the model and CLIP lack: refuse, or skip "
            "those of text encoders (or all), and say so in the log.",
            default="refuse",
            choices=lambda: _MISSING,
        ),
        NodeInput(kind="clip", name="clip", help="The text encoders.", optional=True),
    ),
    outputs=(
        NodeOutput("model", "model", "The model with the adapters."),
        NodeOutput("clip", "clip", "The text encoders with the adapters; nothing if none came in."),
    ),
    run=_run,
    order=90,
)
