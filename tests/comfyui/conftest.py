"""A stand-in for ComfyUI with two adapters and a checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loramerge.comfyui import comfy_entrypoint
from loramerge.families import FAMILIES
from tests.comfyui import narrow
from tests.comfyui.stub import World, comfyui


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with comfyui(tmp_path) as found, FAMILIES.adding(narrow.FAMILY):
        narrow.write_adapter(found.loras / "character.safetensors", 3, 1, only="mid_block")
        narrow.write_adapter(found.loras / "style.safetensors", 2, 2, only="mid_block|layers.0")
        yield found


@pytest.fixture
def nodes(world: World) -> dict[str, Any]:
    """Name → class, as ComfyUI gets them."""
    extension = asyncio.run(comfy_entrypoint())
    found = asyncio.run(extension.get_node_list())
    return {one.define_schema().node_id: one for one in found}


class Runner:
    """Runs prompts in the form of ComfyUI's API, each node once and after its inputs."""

    def __init__(self, nodes: dict[str, Any]) -> None:
        self.nodes = nodes

    def __call__(self, prompt: dict[str, Any], **given: Any) -> dict[str, tuple[Any, ...]]:
        done: dict[str, tuple[Any, ...]] = {name: (value,) for name, value in given.items()}
        while left := [name for name in prompt if name not in done]:
            name = next(n for n in left if all(s[0] in done for s in self._links(prompt[n])))
            values = {
                slot: done[value[0]][value[1]] if self._is_link(value) else value
                for slot, value in prompt[name]["inputs"].items()
            }
            done[name] = self.run(prompt[name]["class_type"], **values)
        return done

    def run(self, kind: str, **values: Any) -> tuple[Any, ...]:
        """Run a node; widgets that are not named have their defaults."""
        found = self.nodes[kind]
        schema = found.define_schema()
        widgets = {
            one.id: one.more["default"]
            for one in schema.inputs
            if one.more.get("default") is not None
        }
        assert values.keys() <= {one.id for one in schema.inputs}
        output = found.execute(**widgets | values)
        assert len(output.args) == len(schema.outputs)
        return tuple(output.args)

    @staticmethod
    def _is_link(value: Any) -> bool:
        return isinstance(value, list)

    def _links(self, node: Any) -> list[Any]:
        return [value for value in node["inputs"].values() if self._is_link(value)]


@pytest.fixture
def runner(nodes: dict[str, Any]) -> Runner:
    return Runner(nodes)
