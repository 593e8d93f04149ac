"""Save recipe: how an adapter was made, for the command line."""

from __future__ import annotations

from loramerge.adapter import Adapter
from loramerge.comfyui.node import Node, NodeInput, NodeOutput
from loramerge.comfyui.places import output_path, output_slots
from loramerge.comfyui.running import recipe_text_of
from loramerge.comfyui.saving import form_slots, in_form
from loramerge.files.writer import write_bytes
from loramerge.steps.provenance import made_of

__all__ = ["NODE"]


def _run(
    adapter: Adapter, name: str, folder: str, if_exists: str, dialect: str, dtype: str
) -> tuple[str, str]:
    path = output_path(name, folder, if_exists, (".yaml",))
    made = made_of(in_form(adapter, dialect, dtype))
    text = recipe_text_of(made, path.with_name(f"{path.name.removesuffix('.yaml')}.safetensors"))
    write_bytes(path, text.encode(), force=if_exists == "replace")
    return text, str(path)


NODE = Node(
    name="LoramergeSaveRecipe",
    title="Save recipe",
    help="Write how an adapter was made as a recipe. `loramerge run NAME.yaml` writes the same file as "
    "Save LoRA, to the byte, beside the recipe.",
    inputs=(
        NodeInput(kind="adapter", name="adapter", help="The adapter."),
        *output_slots("loras/mix", "loras"),
        *form_slots(),
    ),
    outputs=(
        NodeOutput("text", "recipe", "The recipe, as YAML."),
        NodeOutput("text", "path", "Path of the recipe."),
    ),
    run=_run,
    writes=True,
    order=110,
)
