"""Slices of layers of language models are stacked, numbered anew, and taken to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.errors import FamilyError, FormatError, ShapeError, UsageError
from loramerge.stream.merge import merge, output_size
from loramerge.stream.merge_plan import plan_merge
from loramerge.stream.stacking import Slice, stacked
from tests.builders import small_models
from tests.builders.bases import unet_alone
from tests.builders.layered_models import layered


def stack(output: Path, models: list[Path], *slices: tuple[int, int, int], **options: Any) -> Path:
    opened = [open_checkpoint(path) for path in models]
    dtype = options.pop("dtype", None)
    found = stacked(opened, [Slice(*one) for one in slices], same_types=dtype is None, **options)
    plan = plan_merge([(found.checkpoint, Weight())], config=found.config, dtype=dtype)
    merge(plan, output, threads=1, metadata={"made": "here"})
    assert output_size(plan, {"made": "here"}) == small_models.size_of(output)
    return output


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


@pytest.mark.parametrize("shards", [1, 3])
def test_slices_of_two_models(tmp_path: Path, shards: int) -> None:
    a = layered(tmp_path / "a", 4, 1, shards=shards, layer_types=list("wxyz"))
    b = layered(tmp_path / "b", 3, 2, layer_types=list("WXY"))
    models = [tmp_path / "a", tmp_path / "b"]
    output = stack(tmp_path / "out", models, (0, 0, 2), (1, 1, 2), (0, 3, 3))
    want = {
        "lm_head.weight": a["lm_head.weight"],  # of the last slice's model, here A
        "model.embed_tokens.weight": a["model.embed_tokens.weight"],
        "model.norm.weight": a["model.norm.weight"],
    }
    for new, (model, old) in enumerate([(a, 0), (a, 1), (a, 2), (b, 1), (b, 2), (a, 3)]):
        for part in ("weight", "bias"):
            want[f"model.layers.{new}.mlp.{part}"] = model[f"model.layers.{old}.mlp.{part}"]
    got = small_models.read(output)
    assert {n: v.tobytes() for n, v in got.items()} == {n: v.tobytes() for n, v in want.items()}
    config = config_of(output)
    assert config["num_hidden_layers"] == 6 and config["layer_types"] == list("wxyXYz")
    if shards > 1:
        index = json.loads((output / f"{small_models.FILE}.index.json").read_text())
        assert index["weight_map"].keys() == want.keys()
        for name, file in index["weight_map"].items():
            assert (
                name in open_checkpoint(output).files.weights[0].open()[0]
                or (output / file).exists()
            )
    assert open_checkpoint(output).family_name == "transformers"


def test_what_lies_around_the_layers_and_models_of_fewer(tmp_path: Path) -> None:
    a = layered(tmp_path / "a", 4, 1, shards=4)
    b = layered(tmp_path / "b", 2, 2)
    models = [tmp_path / "a", tmp_path / "b"]
    got = small_models.read(stack(tmp_path / "out", models, (0, 0, 0), (1, 1, 1)))
    assert len(got) == 7 and config_of(tmp_path / "out")["num_hidden_layers"] == 2
    assert got["model.embed_tokens.weight"].tobytes() == a["model.embed_tokens.weight"].tobytes()
    for name in ("model.norm.weight", "lm_head.weight"):
        assert got[name].tobytes() == b[name].tobytes()
    other = stack(tmp_path / "other", models, (0, 0, 0), (1, 1, 1), outside={"lm_head": 0})
    assert small_models.read(other)["lm_head.weight"].tobytes() == a["lm_head.weight"].tobytes()


def test_an_output_layer_that_shares_the_embedding(tmp_path: Path) -> None:
    layered(tmp_path / "a", 2, 1)
    b = layered(tmp_path / "b", 2, 2)
    rest = {name: value for name, value in b.items() if name != "lm_head.weight"}
    small_models.write(tmp_path / "tied", rest, num_hidden_layers=2, tie_word_embeddings=True)
    models = [tmp_path / "a", tmp_path / "tied"]
    got = small_models.read(stack(tmp_path / "out", models, (0, 0, 1), (1, 0, 1)))
    assert got["lm_head.weight"].tobytes() == b["model.embed_tokens.weight"].tobytes()


def test_another_type(tmp_path: Path) -> None:
    a = layered(tmp_path / "a", 2, 1)
    b = layered(tmp_path / "b", 2, 2, dtype="float32")
    models = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(FormatError, match="different types"):
        stack(tmp_path / "out", models, (0, 0, 1), (1, 0, 1))
    got = small_models.read(stack(tmp_path / "out", models, (0, 0, 1), (1, 0, 1), dtype="F32"))
    for new, (model, old) in enumerate([(a, 0), (a, 1), (b, 0), (b, 1)]):
        want = model[f"model.layers.{old}.mlp.weight"].astype("float32")
        assert np.array_equal(got[f"model.layers.{new}.mlp.weight"], want)


def test_the_configuration_of_models_that_see(tmp_path: Path) -> None:
    a = layered(tmp_path / "a", 2, 1)
    tensors = a | {"visual.blocks.0.w.weight": np.ones((2, 2), "float16"),
                   "visual.blocks.1.w.weight": np.ones((2, 2), "float16")}  # fmt: skip
    text = {"num_hidden_layers": 2}
    small_models.write(tmp_path / "sees", tensors, text_config=text)
    with pytest.raises(FormatError, match="not found by their number"):
        stack(tmp_path / "out", [tmp_path / "sees"], (0, 0, 1))  # two lists are as long
    tensors["visual.blocks.2.w.weight"] = np.ones((2, 2), "float16")
    small_models.write(tmp_path / "fewer", tensors, text_config=text)
    got = stack(tmp_path / "out", [tmp_path / "fewer"], (0, 0, 1), (0, 0, 1))
    assert config_of(got)["text_config"] == {"num_hidden_layers": 4}
    assert "visual.blocks.2.w.weight" in small_models.read(got)


def test_what_cannot_be_stacked_is_refused(tmp_path: Path) -> None:
    layered(tmp_path / "a", 2, 1)
    a, b = tmp_path / "a", tmp_path / "b"
    with pytest.raises(UsageError, match="has no layer 2"):
        stack(tmp_path / "out", [a], (0, 0, 2))
    tensors = layered(b, 2, 2)
    small_models.write(tmp_path / "other", tensors, num_hidden_layers=2, model_type="large")
    with pytest.raises(FamilyError, match="one architecture"):
        stack(tmp_path / "out", [a, tmp_path / "other"], (0, 0, 1), (1, 0, 1))
    wide = tensors | {"model.layers.1.mlp.weight": np.ones((3, 5), "float16")}
    small_models.write(tmp_path / "wide", wide, num_hidden_layers=2)
    with pytest.raises(ShapeError, match="layer 3 of the result"):
        stack(tmp_path / "out", [a, tmp_path / "wide"], (0, 0, 1), (1, 0, 1))
    small_models.write(tmp_path / "mute", tensors)
    with pytest.raises(FormatError, match="does not say how many layers"):
        stack(tmp_path / "out", [tmp_path / "mute"], (0, 0, 1))
    unet = unet_alone(tmp_path / "unet.safetensors", "sd15", "model.diffusion_model.")
    with pytest.raises(FamilyError, match="language models only"):
        stack(tmp_path / "out", [unet.path], (0, 0, 1))
    assert not (tmp_path / "out").exists()
