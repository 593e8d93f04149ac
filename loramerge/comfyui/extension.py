"""Nodes as ComfyUI has them: classes of its V3 schema, made of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from loramerge.comfyui.known import known_nodes
from loramerge.comfyui.node import ADAPTER, STACK, Kind, Node, NodeInput, NodeOutput

__all__ = ["extension"]


def extension() -> Any:
    """Return ComfyUI's extension object, which lists the nodes."""
    latest: Any = import_module("comfy_api.latest")

    class Loramerge(latest.ComfyExtension):  # type: ignore[misc]
        """The nodes of loramerge."""

        async def get_node_list(self) -> list[Any]:
            """Return the classes of all nodes."""
            return await asyncio.sleep(0, [_class_of(node, latest) for node in known_nodes()])

    return Loramerge()


def _class_of(node: Node, latest: Any) -> Any:
    """Return the class that ComfyUI makes a node of."""
    io = latest.io

    def define_schema(cls: Any) -> Any:
        return io.Schema(
            node_id=node.name,
            display_name=node.title,
            category=node.category,
            description=node.help,
            inputs=[_input(slot, io) for slot in node.inputs],
            outputs=[_output(named, io) for named in node.outputs],
            is_output_node=node.writes,
        )

    def execute(cls: Any, **given: Any) -> Any:
        found = node.run(**given)
        return io.NodeOutput(*found)

    functions: dict[str, Callable[..., Any]] = {"define_schema": define_schema, "execute": execute}
    fingerprint = node.fingerprint
    if fingerprint is not None:

        def fingerprint_inputs(cls: Any, **given: Any) -> Any:
            return fingerprint(given)

        functions["fingerprint_inputs"] = fingerprint_inputs
    return type(
        node.name,
        (io.ComfyNode,),
        {name: classmethod(function) for name, function in functions.items()},
    )


def _sockets(io: Any) -> Mapping[Kind, Any]:
    return {
        "adapter": io.Custom(ADAPTER),
        "stack": io.Custom(STACK),
        "model": io.Model,
        "clip": io.Clip,
        "image": io.Image,
        "text": io.String,
        "lines": io.String,
    }


def _output(named: NodeOutput, io: Any) -> Any:
    return _sockets(io)[named.kind].Output(display_name=named.name, tooltip=named.help)


def _input(slot: NodeInput, io: Any) -> Any:
    """Return an input of ComfyUI."""
    common: dict[str, Any] = {
        "display_name": slot.title,
        "tooltip": slot.help,
        "optional": slot.optional,
    }
    if not slot.is_widget:
        return _sockets(io)[slot.kind].Input(slot.name, **common)
    if slot.kind == "choice":
        options = list(slot.choices())
        default = slot.default if slot.default in options else None
        return io.Combo.Input(slot.name, options=options, default=default, **common)
    common["default"] = slot.default
    if slot.kind == "switch":
        return io.Boolean.Input(slot.name, **common)
    if slot.kind in ("text", "lines"):
        return io.String.Input(slot.name, multiline=slot.kind == "lines", **common)
    display = io.NumberDisplay.slider if slot.slider else io.NumberDisplay.number
    numbers = {"min": slot.least, "max": slot.most, "step": slot.step, "display_mode": display}
    if (
        slot.kind == "whole"
    ):  # of one named seed the interface would change the value after each run
        return io.Int.Input(slot.name, **common, **numbers, control_after_generate=False)
    return io.Float.Input(slot.name, **common, **numbers, round=1e-6)
