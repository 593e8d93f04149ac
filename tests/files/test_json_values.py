"""JSON of strangers: whatever is wrong with it is a ValueError, and a CorruptFile where it is read."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

import loramerge
from loramerge.adapter.formats.diffusers import header_configurations
from loramerge.adapter.formats.peft import configuration
from loramerge.adapter.formats.peft_shared import shares
from loramerge.adapter.metadata import tags
from loramerge.checkpoint.comfy import MARK, settings_of
from loramerge.checkpoint.files import find_files
from loramerge.checkpoint.generic import is_transformers
from loramerge.checkpoint.storages import bitsandbytes4
from loramerge.errors import CorruptFile, FormatError, LoramergeError
from loramerge.files.json_values import read_values, values_in
from loramerge.files.tensors import ArrayTensor
from loramerge.recipe.lock import _pins
from loramerge.recipe.mergekit.reading import _layers_of
from loramerge.recipe.state import State
from loramerge.steps.lineage import lineage_of
from loramerge.steps.provenance import recipe_in
from loramerge.stream.sharing import _shares

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
    with pytest.raises(CorruptFile, match="header"):
        lineage_of({"sd_merge_recipe": text, "sd_merge_models": text})
    mark = ArrayTensor(np.frombuffer(text.encode(), "uint8"))
    with pytest.raises(FormatError, match="the mark of a quantised weight"):
        settings_of({"x" + MARK: mark}, "x")
    with pytest.raises(FormatError, match="the state of a quantised weight"):
        bitsandbytes4._state({"x.quant_state.bitsandbytes__nf4": mark}, "x")
    assert _layers_of([str(tmp_path)]) == (None, "layers")
    for name, read in (
        ("r.state.json", lambda path: State.beside(path.with_name("r.yaml"), tmp_path)),
        ("r.lock.json", _pins),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(CorruptFile, match="of the recipe cannot be read"):
            read(tmp_path / name)


@pytest.mark.parametrize("record", [
    {"key": "x", "seconds": float("nan")}, {"key": "x", "seconds": -1}, {"key": "x", "seconds": "1"},
    {"key": 1}, {"key": "x", "output": 1}, {"key": "x", "sha256": []}, {"key": "x", "figures": []}, {},
])  # fmt: skip
def test_a_record_that_no_run_has_written_is_refused(record: object, tmp_path: Path) -> None:
    content = {"version": 1, "running": [], "tasks": {"a": record}}
    (tmp_path / "r.state.json").write_text(json.dumps(content))
    with pytest.raises(CorruptFile, match="state of the recipe cannot be read"):
        State.beside(tmp_path / "r.yaml", tmp_path)


@pytest.mark.parametrize("value", [{}, [], 0, False, ["LORA"], 1.5])
def test_values_of_another_kind_in_configurations(value: object, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": value}))
    with pytest.raises(FormatError, match=r"of type .* cannot be read"):
        configuration(tmp_path / "adapter_config.json")
    assert not shares({"peft_type": value})
    assert _shares({"architectures": value}) is False


def test_json_is_read_in_one_place() -> None:
    """Elsewhere a text nested too deeply would end a command with Python's RecursionError."""
    root = Path(loramerge.__file__).parent
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if re.search(r"json\.loads?\(", path.read_text("utf-8"))
    }
    assert found == {"files/json_values.py", "files/header.py"}


@pytest.mark.parametrize(("raw", "words"), [
    (b"\xff", "not UTF-8"), (b'"9"', "no weight_map"), (b'{"weight_map": 1}', "no weight_map"),
    (b'{"weight_map": {}, "metadata": 1}', "not an object"), (b'{"weight_map": {"a": []}}', "not text"),
])  # fmt: skip
def test_an_index_is_refused_in_words(raw: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(raw)
    with pytest.raises(CorruptFile, match=words):
        find_files(tmp_path)


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
