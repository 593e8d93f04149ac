"""Nodes as ComfyUI sees them: their inputs, where they read and write, when they run again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.comfyui.known import known_nodes
from loramerge.comfyui.node import NOTHING
from loramerge.comfyui.places import output_path
from loramerge.comfyui.running import weight_from
from loramerge.comfyui.words import definitions, menu
from loramerge.errors import LoramergeError, MissingFile, OutputExists, UsageError
from tests.comfyui import narrow
from tests.comfyui.conftest import Runner
from tests.comfyui.stub import World


def test_every_node_has_a_schema(nodes: dict[str, Any]) -> None:
    assert list(nodes) == [node.name for node in known_nodes()]
    for node in known_nodes():
        schema = nodes[node.name].define_schema()
        ids = [one.id for one in schema.inputs]
        assert len(set(ids)) == len(ids) and schema.category == "loramerge"
        assert schema.is_output_node == node.writes
        for one in schema.inputs:
            if "options" in one.more and one.more["default"] is not None:
                assert one.more["default"] in one.more["options"], (node.name, one.id)
            if "min" in one.more:
                assert one.more["min"] <= one.more["default"] <= one.more["max"], (
                    node.name,
                    one.id,
                )
        widgets = [one.optional for one in schema.inputs]
        assert sorted(widgets) == widgets, f"{node.name}: optional inputs come last"


def test_the_lists_show_the_files(world: World, nodes: dict[str, Any]) -> None:
    narrow.write_checkpoint(world.checkpoints / "sub" / "narrow.safetensors")
    schema = nodes["LoramergeBake"].define_schema()
    (base,) = (one for one in schema.inputs if one.id == "base")
    assert base.more["options"] == ["checkpoints/sub/narrow.safetensors"]
    schema = nodes["LoramergeLoadStack"].define_schema()
    assert schema.inputs[0].more["options"] == [
        NOTHING,
        "character.safetensors",
        "style.safetensors",
    ]


def test_names_in_both_languages() -> None:
    english, japanese = definitions("en"), definitions("ja")
    assert english.keys() == japanese.keys()
    for name, node in english.items():
        other = japanese[name]
        for part in ("inputs", "outputs"):
            assert node[part].keys() == other[part].keys(), name
            for key, words in node[part].items():
                assert words["name"] and words["tooltip"], (name, key)
                assert _is_japanese(other[part][key]["tooltip"]), (name, key)
        assert _is_japanese(other["display_name"]) and _is_japanese(other["description"])
    assert menu("en") == {"nodeCategories": {"loramerge": "loramerge"}}
    assert _is_japanese(menu("ja")["nodeCategories"]["loramerge"])


def _is_japanese(text: str) -> bool:
    return any("\u3040" <= letter <= "\u30ff" or "\u4e00" <= letter <= "\u9fff" for letter in text)


def test_tooltips_have_no_options_of_the_command_line() -> None:
    for node in known_nodes():
        for slot in node.inputs:
            assert "--" not in slot.help, (node.name, slot.name)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["", " ", "../x", "a/../../x", "/x", "a//b", "C:x", "a/.", "x\ny", "a\\..\\..\\x", "x/ "],
)
def test_names_that_leave_the_folder_are_refused(name: str, world: World) -> None:
    with pytest.raises(UsageError, match="this cannot be the name of a file"):
        output_path(name, "output", "number")
    assert not list(world.output.iterdir())


def test_a_link_out_of_the_folder_is_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    try:
        (world.output / "out").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    except OSError:
        pytest.skip("links cannot be made here")
    with pytest.raises(UsageError, match="leads out of the folder"):
        output_path("out/x", "output", "replace")


def test_existing_files(world: World) -> None:
    first = output_path("mixes/a", "output", "number")
    assert first == world.output / "mixes" / "a.safetensors"
    first.touch()
    assert output_path("mixes/a", "output", "number").name == "a-2.safetensors"
    (world.output / "mixes" / "a-2.yaml").touch()
    both = output_path("mixes/a", "output", "number", (".safetensors", ".yaml"))
    assert both.name == "a-3.safetensors"
    assert output_path("mixes/a", "output", "replace") == first
    with pytest.raises(OutputExists, match="the output exists"):
        output_path("mixes/a", "output", "refuse")
    assert output_path("b", "loras", "refuse") == world.loras / "b.safetensors"


def test_a_changed_file_is_read_again(world: World, nodes: dict[str, Any]) -> None:
    for kind, values in (
        ("LoramergeLoad", {"adapter": "style.safetensors"}),
        ("LoramergeLoadStack", _chosen("style.safetensors")),
    ):
        before = nodes[kind].fingerprint_inputs(**values)
        assert nodes[kind].fingerprint_inputs(**values) == before
        path = world.loras / "style.safetensors"
        narrow.write_adapter(path, 2, before != 0, only="mid_block")
        later = path.stat().st_mtime_ns + 10**9
        os.utime(path, ns=(later, later))
        assert nodes[kind].fingerprint_inputs(**values) != before


def _chosen(*names: str) -> dict[str, Any]:
    padded = [*names, *[NOTHING] * (4 - len(names))]
    return {f"adapter_{n}": name for n, name in enumerate(padded, 1)} | {
        f"weight_{n}": 1.0 for n in range(1, 5)
    }


def test_a_file_that_is_gone(runner: Runner, world: World) -> None:
    (world.loras / "style.safetensors").unlink()
    with pytest.raises(MissingFile, match="ComfyUI has no such file in loras"):
        runner.run("LoramergeLoad", adapter="style.safetensors")


@pytest.mark.parametrize("name", [NOTHING, "loras/x", "../x", "x"])
def test_a_base_that_is_not_in_the_list(name: str, runner: Runner) -> None:
    with pytest.raises(UsageError, match="no checkpoint is chosen"):
        runner.run("LoramergeExtract", tuned=name, base=name, rank=1)


# --- weights --------------------------------------------------------------------------------------


def test_weights_in_the_words_of_the_command_line() -> None:
    assert weight_from("").default == 1.0
    assert weight_from("0.8").default == 0.8
    components = weight_from(" unet=0.5:te=0 ").components
    assert components["unet"] == 0.5 and components["text_encoder"] == 0.0
    assert weight_from("OUTALL").blocks
    assert weight_from("default: 0\nmatch: {'*attn2*': 0.5}").match == (("*attn2*", 0.5),)
    for wrong in ("strong", "0.8:0.5", "a/b:1", "{unet: ", "unit: 0.5", "- a: 1"):
        with pytest.raises(LoramergeError):
            weight_from(wrong)


def test_stacks_are_chained_in_order(runner: Runner) -> None:
    (first,) = runner.run("LoramergeLoadStack", adapter_1="style.safetensors", weight_1=0.5)
    (character,) = runner.run("LoramergeLoad", adapter="character.safetensors")
    (second,) = runner.run("LoramergeBlockWeights", adapter=character, weights="0.25", stack=first)
    (third,) = runner.run("LoramergeLoadStack", adapter_3="style.safetensors", stack=second)
    assert [adapter.label.rpartition(os.sep)[2] for adapter, _ in third] == [
        "style.safetensors", "character.safetensors", "style.safetensors"
    ]  # fmt: skip
    assert np.allclose([weight.default for _, weight in third], [0.5, 0.25, 1.0])
    with pytest.raises(UsageError, match="names blocks that narrow lacks"):
        runner.run("LoramergeBlockWeights", adapter=character, preset="OUTALL")
    with pytest.raises(UsageError, match="only one of them counts"):
        runner.run("LoramergeBlockWeights", adapter=character, preset="OUTALL", weights="0.5")
