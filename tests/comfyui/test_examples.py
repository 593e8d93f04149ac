"""The example workflows are up to date, and run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import loramerge.comfyui
from tests.comfyui import examples, narrow
from tests.comfyui.conftest import Runner
from tests.comfyui.stub import World

FOLDER = Path(loramerge.comfyui.__file__).parent / "example_workflows"
UPDATE = bool(os.environ.get("LORAMERGE_UPDATE_DOCS"))


def test_there_are_no_others() -> None:
    names = {f"{name}{ending}" for name in examples.EXAMPLES for ending in (".json", ".jpg")}
    assert {path.name for path in FOLDER.iterdir()} == names


@pytest.mark.parametrize("name", list(examples.EXAMPLES))
def test_the_files_are_those_of_the_graphs(name: str) -> None:
    graph = examples.EXAMPLES[name]
    if UPDATE:
        (FOLDER / f"{name}.json").write_bytes(examples.text_of(graph))
        (FOLDER / f"{name}.jpg").write_bytes(examples.picture_of(graph))
    assert (FOLDER / f"{name}.json").read_bytes() == examples.text_of(graph)
    image = pytest.importorskip("PIL.Image")
    with image.open(FOLDER / f"{name}.jpg") as picture:
        corners = [examples.position_of(box) for box in graph.values()]
        assert picture.width == max(left for left, _ in corners) + examples.WIDTH + 40
        assert picture.height < 1000


@pytest.mark.parametrize("name", list(examples.EXAMPLES))
def test_links_join_outputs_and_inputs_of_one_type(name: str) -> None:
    workflow = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, output, target, slot, kind in workflow["links"]:
        assert number in nodes[source]["outputs"][output]["links"]
        assert nodes[source]["outputs"][output]["type"] == kind
        into = nodes[target]["inputs"][slot]
        assert into["link"] == number and into["type"] in (kind, "*")


@pytest.mark.parametrize("name", list(examples.EXAMPLES))
def test_they_overlap_nowhere(name: str) -> None:
    boxes = list(examples.EXAMPLES[name].values())
    for n, one in enumerate(boxes):
        for other in boxes[:n]:
            top, bottom = examples.position_of(one)[1], examples.position_of(other)[1]
            upper, lower = (one, other) if top <= bottom else (other, one)
            end = examples.position_of(upper)[1] + examples.height_of(upper)
            start = examples.position_of(lower)[1] - examples.TITLE
            assert one.place[0] != other.place[0] or end <= start, (one.kind, other.kind)


@pytest.mark.parametrize("name", list(examples.EXAMPLES))
def test_they_run(name: str, world: World, runner: Runner) -> None:
    pytest.importorskip("torch")
    for seed, base in enumerate(("sd15", "sd15-tuned")):
        narrow.write_checkpoint(world.checkpoints / f"{base}.safetensors", seed=seed)
    graph = examples.as_prompt(examples.EXAMPLES[name])
    ours = {node: box for node, box in graph.items() if box["class_type"].startswith("Loramerge")}
    if name == "try-on-the-model":
        del ours["apply"]  # tests/comfyui/test_apply.py, and test_real.py, which runs the whole
    done: dict[str, Any] = runner(ours)
    assert done.keys() == ours.keys()
