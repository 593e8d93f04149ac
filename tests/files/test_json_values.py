"""JSON of strangers: whatever is wrong with it is a ValueError, and a CorruptFile where it is read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from loramerge.adapter.formats.diffusers import header_configurations
from loramerge.adapter.formats.peft import configuration
from loramerge.adapter.metadata import tags
from loramerge.checkpoint.files import find_files
from loramerge.checkpoint.generic import is_transformers
from loramerge.errors import CorruptFile, LoramergeError
from loramerge.files.json_values import read_values, values_in
from loramerge.steps.provenance import recipe_in

DEEP = '{"a":' * 100_000
BAD = {
    "deep": DEEP,
    "deep lists": "[" * 100_000,
    "a long number": '{"r": ' + "9" * 1000 + "}",
    "a very long number": '{"r": ' + "9" * 100_000 + "}",
    "a long negative number": '{"r": -' + "9" * 1000 + "}",
    "no JSON": "{",
}


@pytest.mark.parametrize("case", BAD)
def test_bad_json_is_refused_wherever_it_is_read(case: str, tmp_path: Path) -> None:
    text = BAD[case]
    with pytest.raises(ValueError):
        values_in(text)
    for name in ("adapter_config.json", "config.json", "model.safetensors.index.json"):
        (tmp_path / name).write_text(text)
    with pytest.raises(CorruptFile, match="the configuration cannot be read"):
        configuration(tmp_path / "adapter_config.json")
    with pytest.raises(CorruptFile, match="is not JSON"):
        header_configurations({"lora_adapter_metadata": text}, tmp_path)
    with pytest.raises(CorruptFile, match="the index cannot be read"):
        find_files(tmp_path)
    assert not is_transformers(tmp_path)
    assert tags({"ss_tag_frequency": text}) == []
    assert recipe_in({"loramerge.recipe": text}) is None


def test_usual_values_are_read_as_json_reads_them() -> None:
    for value in ({"r": 4, "a": [1.5, None, True, "ä"]}, 10**99, -5, [], {"x": float("inf")}):
        assert values_in(json.dumps(value)) == value


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_counts_that_are_not_numbers_are_left_out(number: str) -> None:
    raw = f'{{"1_a": {{"x": {number}, "y": 2}}}}'
    assert tags({"ss_tag_frequency": raw}) == [("y", 2)]


@pytest.mark.parametrize("name", [1, None, 2.5, ["a"], "x" * 5000, "a\0b"])
def test_an_index_whose_shards_are_not_names_is_refused(name: object, tmp_path: Path) -> None:
    index = {"weight_map": {"a": name, "b": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LoramergeError) as caught:
        find_files(tmp_path)
    assert caught.value.exit_code == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "adapter_config.json")
    with pytest.raises(OSError, match="not a regular file"):
        read_values(tmp_path / "adapter_config.json")
    with pytest.raises(CorruptFile, match="not a regular file"):
        configuration(tmp_path / "adapter_config.json")
