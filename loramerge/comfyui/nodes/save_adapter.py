"""Save adapter: a file that every program loads."""

from __future__ import annotations

from loramerge.adapter import Adapter
from loramerge.api import save
from loramerge.comfyui.node import NOTHING, Node, NodeInput, NodeOutput
from loramerge.comfyui.places import output_path, output_slots
from loramerge.comfyui.saving import form_slots, in_form

__all__ = ["NODE"]


def _run(
    adapter: Adapter, name: str, folder: str, if_exists: str, dialect: str, dtype: str
) -> tuple[str]:
    path = output_path(name, folder, if_exists)
    found = in_form(adapter, dialect, dtype)
    save(
        found,
        path,
        dialect=None if dialect == NOTHING else dialect,
        dtype=None if dtype == NOTHING else dtype,
        force=if_exists == "replace",
    )
    return (str(path),)


NODE = Node(
    name="LoramergeSave",
    title="Save LoRA",
    help="Write an adapter to a file. Its header says how it was made.",
    inputs=(
        NodeInput(kind="adapter", name="adapter", help="The adapter."),
        *output_slots("loras/mix", "loras"),
        *form_slots(),
    ),
    outputs=(NodeOutput("text", "path", "Path of the file."),),
    run=_run,
    writes=True,
    order=100,
)
