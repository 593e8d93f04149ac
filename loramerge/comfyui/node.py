"""A node: its inputs, its outputs, and the function that runs it, without anything of ComfyUI."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "ADAPTER",
    "NOTHING",
    "STACK",
    "Node",
    "NodeInput",
    "NodeOutput",
    "adapter_output",
    "report_output",
]

ADAPTER, STACK = "LORAMERGE_ADAPTER", "LORAMERGE_STACK"
NOTHING = "none"  # the choice that leaves a parameter out

Kind = Literal[
    "adapter", "stack", "model", "clip", "image", "whole", "number", "text", "lines", "choice",
    "switch",
]  # fmt: skip


@dataclass(frozen=True)
class NodeOutput:
    """An output of a node.

    Args:
        name: in the interface, in English.
        help: its tooltip.
    """

    kind: Kind
    name: str
    help: str


@dataclass(frozen=True, kw_only=True)
class NodeInput:
    """An input of a node: a socket, or a widget.

    Args:
        name: in workflows, and of the argument that gets the value.
        help: its tooltip, in English.
        default: of a widget.
        least, most, step: of a number.
        slider: whether a number is shown as a slider.
        choices: lists the values of a choice each time that the interface asks for them.
        optional: whether the node runs without a connection.
        label: its name in the interface, if that is not `name` with spaces.
    """

    kind: Kind
    name: str
    help: str
    default: Any = None
    least: float = 0
    most: float = 1
    step: float = 1
    slider: bool = False
    choices: Callable[[], Sequence[str]] = tuple
    optional: bool = False
    label: str | None = None

    @property
    def title(self) -> str:
        """The name in the interface."""
        return self.label or self.name.replace("_", " ")

    @property
    def is_widget(self) -> bool:
        """True if a value is entered in the node itself."""
        return self.kind not in ("adapter", "stack", "model", "clip", "image")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of ComfyUI.

    Args:
        name: identifies it in workflows; never changes.
        title: in menus, in English.
        help: one or two sentences.
        outputs: what `run` returns, in order.
        run: function of the inputs by name; an optional one that is not connected is None.
        writes: whether it runs although nothing uses its outputs.
        fingerprint: function of the same inputs; while its result stays the same, ComfyUI may use the
            outputs of the last run.
        order: place in lists.
    """

    name: str
    title: str
    help: str
    inputs: Sequence[NodeInput]
    outputs: Sequence[NodeOutput]
    run: Callable[..., Sequence[Any]]
    writes: bool = False
    fingerprint: Callable[[Mapping[str, Any]], Any] | None = None
    order: int = 100
    category: str = field(default="loramerge")


def adapter_output(help: str) -> NodeOutput:
    """Return the output for the adapter that a node makes."""
    return NodeOutput("adapter", "adapter", help)


def report_output() -> NodeOutput:
    """Return the output for the figures of what a node did."""
    return NodeOutput(
        "text", "report", "What was computed: ranks, sizes, errors. Connect it to Preview Any."
    )
