"""Nodes that write a checkpoint, and the recipe that writes it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loramerge.adapter import Adapter
from loramerge.comfyui.node import NodeInput
from loramerge.comfyui.places import output_path
from loramerge.comfyui.running import recipe_text_of, references, report_of, result_of
from loramerge.files.writer import write_bytes
from loramerge.parameters import parameters_of
from loramerge.recipe.made import recipe_step
from loramerge.steps.inputs import base_path
from loramerge.steps.parameters import Context
from loramerge.steps.provenance import FileInput, Made, input_of
from loramerge.steps.references import Reference

__all__ = ["recipe_slot", "write"]


def recipe_slot() -> NodeInput:
    """Return the input that asks for the recipe beside the checkpoint."""
    return NodeInput(
        kind="switch",
        name="save_recipe",
        help="Write the recipe beside the checkpoint. `loramerge run NAME.yaml` writes the same file "
        "again, to the byte.",
        default=True,
    )


def write(
    verb: str,
    values: Mapping[str, Any],
    inputs: Mapping[str, Sequence[Any]],
    given: Mapping[str, Any],
    suffix: str = ".safetensors",
) -> tuple[str, str, str]:
    """Run a verb that writes a checkpoint; return its path, its recipe and the report.

    Args:
        values: parameters of the verb, apart from its inputs and output.
        inputs: the parameter that holds the inputs, and these: paths or adapters, with weights.
        given: the values of the node, of which those of `output_slots` and `recipe_slot` are used.
    """
    ((word, several),) = inputs.items()
    suffixes = (suffix, ".yaml") if given["save_recipe"] else (suffix,)
    path = output_path(given["name"], given["folder"], given["if_exists"], suffixes)
    found, context = references(several)
    replace = given["if_exists"] == "replace"
    own = {word: found, "output": path, "force": replace}
    parameters, result = result_of(verb, {**values, **own}, context, save=True)
    text = ""
    made = _made(verb, parameters.settled(), context)
    if made is not None or given["save_recipe"]:
        text = recipe_text_of(made, path)
    if given["save_recipe"]:
        place = path.with_name(f"{path.name.removesuffix(suffix)}.yaml")
        write_bytes(place, text.encode(), force=replace)
    return str(path), text, report_of(result)


def _made(verb: str, parameters: Any, context: Context) -> Made | None:
    """Return the step that wrote the checkpoint."""
    given: dict[tuple[str, str], Any] = {}
    for one in parameters_of(type(parameters)):
        if not one.refers or one.holder is not None:
            continue
        value = getattr(parameters, one.name)
        for named in value if one.many else (value,):
            if not one.names(named):
                continue
            name = named.name if isinstance(named, Reference) else named
            holds = str(one.doc.completes)
            holds = named.holds(holds) if isinstance(named, Reference) else holds
            adapter = context.known.get(name)
            given[holds, name] = (
                input_of(adapter)
                if isinstance(adapter, Adapter)
                else FileInput(base_path(name, context), (), None)
            )
    return recipe_step(verb, parameters, given)
