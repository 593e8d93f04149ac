"""The words of the nodes in English and Japanese, in the files that ComfyUI's interface reads.

English stands in the nodes themselves. Japanese stands in `locales/ja.json`: each input once, unless a
node gives it another meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from loramerge.comfyui.known import known_nodes
from loramerge.comfyui.node import Node, NodeInput
from loramerge.files.json_values import read_values

__all__ = ["LANGUAGES", "definitions", "menu"]

LANGUAGES = ("en", "ja")


@cache
def _table(language: str) -> Mapping[str, Any]:
    path = Path(__file__).with_name("locales") / f"{language}.json"
    found: Mapping[str, Any] = read_values(path)
    return found


def menu(language: str) -> dict[str, Any]:
    """Return the content of `main.json`: the name of the menu."""
    categories = {node.category for node in known_nodes()}
    names = {one: one if language == "en" else _table(language)["category"] for one in categories}
    return {"nodeCategories": names}


def definitions(language: str) -> dict[str, Any]:
    """Return the content of `nodeDefs.json`: titles, inputs, outputs and tooltips of all nodes.

    Raises:
        KeyError: if the table of the language lacks a node or an input.
    """
    return {node.name: _definition(node, language) for node in known_nodes()}


def _definition(node: Node, language: str) -> dict[str, Any]:
    if language == "en":
        title, help = node.title, node.help
        outputs = [(one.name, one.help) for one in node.outputs]
    else:
        own = _table(language)["nodes"][node.name]
        title, help = own["display_name"], own["description"]
        outputs = [(name, tooltip) for name, tooltip in own["outputs"]]
    return {
        "display_name": title,
        "description": help,
        "inputs": {slot.name: _named(*_input(node, slot, language)) for slot in node.inputs},
        "outputs": {str(n): _named(*words) for n, words in enumerate(outputs)},
    }


def _input(node: Node, slot: NodeInput, language: str) -> tuple[str, str]:
    if language == "en":
        return slot.title, slot.help
    table = _table(language)
    own = table["nodes"][node.name].get("inputs", {})
    name, tooltip = own.get(slot.name) or table["inputs"][slot.name]
    return name, tooltip


def _named(name: str, tooltip: str) -> dict[str, str]:
    return {"name": name, "tooltip": tooltip}
