"""Merge: checkpoints of one family into one, which is written."""

from __future__ import annotations

from typing import Any

from loramerge.algebra.weights import Weight
from loramerge.comfyui.node import NOTHING, Node, NodeInput, NodeOutput, report_output
from loramerge.comfyui.parameters import options_slot, slots_of, values_of
from loramerge.comfyui.places import bases, output_slots, path_of_base
from loramerge.comfyui.running import Stack
from loramerge.comfyui.written import recipe_slot, write
from loramerge.verbs.merge import Merge

__all__ = ["NODE"]

_WORDS = ("method", "scale", "base", "vae", "text_encoder", "dtype")
_PLACES = ("base", "vae", "text_encoder")


def _run(
    model_a: str,
    model_b: str,
    weight_b: float,
    model_c: str,
    weight_c: float,
    stack: Stack | None = None,
    **given: Any,
) -> tuple[str, str, str]:
    values = values_of(Merge, _WORDS, given, writes=True)
    values |= {word: path_of_base(values[word]) for word in _PLACES if word in values}
    models: list[Any] = [path_of_base(model_a), (path_of_base(model_b), Weight(weight_b))]
    if model_c != NOTHING:
        models.append((path_of_base(model_c), Weight(weight_c)))
    return write("merge", values, {"models": [*models, *(stack or ())]}, given)


def _weight(name: str, model: str) -> NodeInput:
    return NodeInput(
        kind="number",
        name=name,
        help=f"Weight of {model}. Without a base, model A gets what is left of 1.",
        default=0.5,
        least=-2.0,
        most=2.0,
        step=0.05,
        slider=True,
    )


NODE = Node(
    name="LoramergeMerge",
    title="Merge checkpoints",
    help="Merge checkpoints of one family, and write the result. With a base, their changes of it are "
    "combined.",
    inputs=(
        NodeInput(kind="choice", name="model_a", help="The result has its layout.", choices=bases),
        NodeInput(kind="choice", name="model_b", help="The second checkpoint.", choices=bases),
        _weight("weight_b", "model B"),
        NodeInput(
            kind="choice",
            name="model_c",
            help="A third checkpoint, or none.",
            default=NOTHING,
            choices=lambda: (NOTHING, *bases()),
        ),
        _weight("weight_c", "model C"),
        *output_slots("checkpoints/merged", "checkpoints"),
        recipe_slot(),
        *slots_of(Merge, *_WORDS),
        options_slot(Merge, "density: 0.5"),
        NodeInput(kind="stack", name="stack", help="Adapters to add to the result.", optional=True),
    ),
    outputs=(
        NodeOutput("text", "path", "Path of the checkpoint."),
        NodeOutput("text", "recipe", "The recipe that writes it again, as YAML."),
        report_output(),
    ),
    run=_run,
    writes=True,
    order=80,
)
