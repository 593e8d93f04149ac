"""Bake: adapters into a checkpoint, which is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loramerge.comfyui.node import Node, NodeInput, NodeOutput, report_output
from loramerge.comfyui.parameters import options_slot, slots_of, values_of
from loramerge.comfyui.places import bases, output_slots, path_of_base
from loramerge.comfyui.running import Stack, require_adapters
from loramerge.comfyui.written import recipe_slot, write
from loramerge.verbs.bake import Bake

__all__ = ["NODE"]

_WORDS = ("rounding", "seed", "dtype", "skip_missing", "allow_loss")


def _run(base: str, stack: Stack, **given: Any) -> tuple[str, str, str]:
    values = values_of(Bake, _WORDS, given, writes=True)
    path = path_of_base(base)
    adapters = {"adapters": list(require_adapters(stack))}
    return write("bake", {**values, "base": path}, adapters, given, _suffix(path))


def _suffix(base: Path) -> str:
    return ".gguf" if base.suffix.lower() == ".gguf" else ".safetensors"


NODE = Node(
    name="LoramergeBake",
    title="Bake LoRAs into checkpoint",
    help="Write a checkpoint with the adapters of a stack added to it. Its layout stays as it is.",
    inputs=(
        NodeInput(kind="choice", name="base", help="Checkpoint to add them to.", choices=bases),
        NodeInput(kind="stack", name="stack", help="The adapters with their weights."),
        *output_slots("checkpoints/baked", "checkpoints"),
        recipe_slot(),
        *slots_of(Bake, *_WORDS),
        options_slot(Bake, "keep_touched: bfloat16"),
    ),
    outputs=(
        NodeOutput("text", "path", "Path of the checkpoint."),
        NodeOutput("text", "recipe", "The recipe that writes it again, as YAML."),
        report_output(),
    ),
    run=_run,
    writes=True,
    order=70,
)
