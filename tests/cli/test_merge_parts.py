"""Adapters, modules and layers among what `merge` takes: command, recipe, Python, and what repeats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge as lm
from tests.builders import small_models
from tests.builders.bases import read_safetensors, write_safetensors
from tests.builders.layered_models import layered

Q = "model.layers.0.attn.q_proj"


@pytest.fixture
def models(run: Any) -> Path:
    """Two models and an adapter of them, in the current folder."""
    for number, name in ((1, "a"), (2, "b")):
        small_models.write(run.folder / "models" / name, small_models.weights(number, "F32"))
    lora = run.folder / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    factors = {"B": np.ones((12, 2), "f4"), "A": np.ones((2, 8), "f4")}
    keys = {f"base_model.model.{Q}.lora_{end}.weight": value for end, value in factors.items()}
    write_safetensors(lora / "adapter_model.safetensors", keys)
    return Path(run.folder)


def read(folder: Path) -> dict[str, Any]:
    return small_models.read(folder)


def test_an_adapter_among_the_inputs(run: Any, models: Path) -> None:
    shown = run.ok("merge", "models/a:0.5", "models/b:0.5", "lora:lora:0.25", "-o", "out").out
    assert "added" in shown and "lora at weight 0.25" in shown
    a, b = read(models / "models/a"), read(models / "models/b")
    want = 0.5 * a[f"{Q}.weight"].astype("f8") + 0.5 * b[f"{Q}.weight"] + 0.25 * 2.0
    np.testing.assert_allclose(read(models / "out")[f"{Q}.weight"], want, rtol=1e-6, atol=1e-6)
    found = run.ok("run", "out", "--input", "a=models/a", "--input", "b=models/b", "--json").json
    assert found["verdict"] == "same file"
    _, metadata = read_safetensors(models / "out" / small_models.FILE)
    content = json.loads(metadata["loramerge.recipe"])["steps"]["result"]["merge"]
    assert content["models"][2] == {"adapter": "lora", "weight": 0.25}


def test_recipes_and_python_with_an_adapter(run: Any, models: Path) -> None:
    run.ok("merge", "models/a", "models/b:0.5", "lora:0.25", "-o", "out", "--save-recipe", "r.yaml")
    assert "- lora:0.25" in (models / "r.yaml").read_text()  # a weight follows, so it is a name
    (models / "other.yaml").write_text(
        "version: 1\n"
        "steps:\n"
        "  small: {resize: {adapter: lora, rank: 2}}\n"
        "  m:\n"
        "    merge: {models: [models/a, 'models/b:0.5', {adapter: small, weight: 0.25}]}\n"
        "    save: again\n"
    )
    planned = run.ok("plan", "other.yaml", "--json").json
    run.ok("run", "other.yaml")
    lm.merge(["models/a", ("models/b", 0.5), (lm.load("lora"), 0.25)], "third")
    values = [read(models / name) for name in ("out", "again", "third")]
    for name in values[0]:
        np.testing.assert_allclose(values[0][name], values[1][name], atol=1e-6)
        assert values[0][name].tobytes() == values[2][name].tobytes()
    assert planned["tasks"]["m"]["size"] == small_models.size_of(models / "again")
    (models / "r").mkdir()
    text = (models / "r.yaml").read_text().replace("save: out", "save: r/out")
    (models / "r.yaml").write_text(text)
    run.ok("run", "r.yaml")
    first, second = (read(models / name) for name in ("out", "r/out"))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_adapters_alone_and_names(run: Any, models: Path) -> None:
    run.refused(4, "merge", "lora", "lora:0.5", "-o", "out", says=("adapter", "mix"))
    run.refused(2, "merge", "lora:lora", "lora:lora:0.5", "-o", "out", says=("adapter", "mix"))
    run.refused(3, "merge", "models/a", "lora:nowhere", "-o", "out", says="no adapter 'nowhere'")
    run.ok("merge", "tiny", "lora:zuzu:0.5", "polka:0.2", "-o", "drawn")  # names that come with us
    alone = ("merge", "tiny:0.5", "zuzu", "-o", "half")
    run.refused(2, *alone, says="the weight of a single model must be 1; found 0.5")


def test_modules_of_one_input(run: Any, models: Path) -> None:
    rule = ("--take", "model.layers.0.*=b")
    run.ok("merge", "models/a", "models/b:0.25", *rule, "-o", "out")
    a, b, got = (read(models / name) for name in ("models/a", "models/b", "out"))
    for name, value in got.items():
        if name.startswith("model.layers.0."):
            assert value.tobytes() == b[name].tobytes()
        else:
            want = 0.75 * a[name].astype("f8") + 0.25 * b[name]
            np.testing.assert_allclose(value, want, rtol=1e-6, atol=1e-6)
    same = run.ok("run", "out", "--input", "a=models/a", "--input", "b=models/b", "--json").json
    assert same["verdict"] == "same file"
    run.ok("merge", "models/a", "models/b", *rule, "-o", "alone")  # b gives nothing else
    alone = read(models / "alone")
    assert all(alone[n].tobytes() == (b if ".0." in n else a)[n].tobytes() for n in alone)
    lm.merge(["models/a", "models/b"], "third", take=["model.layers.0.*=b"])
    assert all(read(models / "third")[n].tobytes() == alone[n].tobytes() for n in alone)
    run.ok("merge", "models/a:0.5", "models/b", *rule, "--base", "models/a", "--method", "ties", "-o",
           "based")  # fmt: skip
    assert read(models / "based")[f"{Q}.weight"].tobytes() == b[f"{Q}.weight"].tobytes()
    two = ("merge", "models/a", "models/b", "-o", "no")
    run.refused(2, *two, "--take", "unet.*=b", says=("no module", "'unet.*'", "model.layers"))
    run.refused(2, *two, "--take", "unet.*", says="PATTERN=NAME")
    run.refused(
        2, *two, "--take", "lm_head=c", says=("'c' is not an adapter or checkpoint", "a, b")
    )
    run.refused(2, *two, "lora", "--take", "lm_head=lora", says="lora is an adapter")


def test_layers_are_stacked(run: Any, models: Path) -> None:
    a, b = layered(models / "x", 3, 1), layered(models / "y", 3, 2)
    slices = ("--layers", "x=0-1", "--layers", "y=1-2")
    shown = run.ok("merge", "x", "y", *slices, "-o", "out").out
    for words in ("passthrough", "x, layers 0 to 1", "y, layers 1 to 2", "that of one input"):
        assert words in shown
    got = read(models / "out")
    assert json.loads((models / "out" / "config.json").read_text())["num_hidden_layers"] == 4
    assert got["model.layers.3.mlp.weight"].tobytes() == b["model.layers.2.mlp.weight"].tobytes()
    assert got["model.norm.weight"].tobytes() == b["model.norm.weight"].tobytes()
    assert run.ok("run", "out", "--json").json["verdict"] == "same file"
    (models / "s.yaml").write_text(
        "version: 1\n"
        "inputs: {first: x, second: y}\n"
        "steps:\n"
        "  m:\n"
        "    merge: {models: [first, second], layers: [first=0-1, second=1-2], take: ['*norm=first']}\n"
        "    save: again\n"
    )
    planned = run.ok("plan", "s.yaml", "--json").json["tasks"]["m"]
    run.ok("run", "s.yaml")
    again = read(models / "again")
    assert again["model.norm.weight"].tobytes() == a["model.norm.weight"].tobytes()
    assert planned["size"] == small_models.size_of(models / "again")
    lm.merge("x", "self", layers=["x=0-2", "x=2"])
    assert len(read(models / "self")) == 11
    run.refused(2, "merge", "x", "y", "--layers", "x=0:1", "-o", "no", says="NAME=FIRST-LAST")
    run.refused(2, "merge", "x", "y:0.5", *slices, "-o", "no", says="leave out the weight")
    run.refused(2, "merge", "x", "y", *slices, "--base", "x", "-o", "no", says="base")
