"""Inputs of a merge may differ in layout and in the tensors that they hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loramerge.algebra.weights import Weight
from loramerge.errors import (
    FormatError,
)
from tests.builders import small_models
from tests.builders.bases import (
    folder,
    read_safetensors,
    sharded,
    single,
    unet_alone,
    write_safetensors,
)
from tests.stream.merges import merged, refused, same_as, small_bytes, wide


@pytest.mark.parametrize("first", ["single", "sharded"])
def test_layouts_may_differ(tmp_path: Path, first: str) -> None:
    a = single(tmp_path / "a.safetensors", "sd15", "F16", seed=1)
    b = sharded(tmp_path / "b", "sd15", "F16")
    order = [a, b] if first == "single" else [b, a]
    output = tmp_path / ("out.safetensors" if first == "single" else "out")
    merged(output, (order[0].path, 0.7), (order[1].path, 0.3))
    x, y = (one.weights for one in order)
    want = {k: 0.7 * x[k].astype("float64") + 0.3 * y[k].astype("float64") for k in x}
    same_as(order[0], output, want, "F16")
    if first == "sharded":
        index = json.loads(next((output / "unet").glob("*.index.json")).read_text())
        assert index["weight_map"] and (output / "model_index.json").is_file()


def test_weights_by_block_component_and_pattern(tmp_path: Path) -> None:
    a = single(tmp_path / "a.safetensors", "sd15", "F32", seed=1)
    b = folder(tmp_path / "b", "sd15", "F32", seed=2)
    vector = [0.0] * 17
    vector[8] = 0.5  # OUT03
    weight = Weight(blocks=tuple(vector), components={"text_encoder": 1.0},
                    match=(("*attn2.to_q", 0.25),))  # fmt: skip
    merged(tmp_path / "out.safetensors", (a.path, 1.0), (b.path, weight))
    want = {}
    for key, value in a.weights.items():
        share = 0.0
        if key.startswith("text_encoder"):
            share = 1.0
        if key.startswith(("unet.up_blocks.1.resnets.0.", "unet.up_blocks.1.attentions.0.")):
            share = 0.5
        if "attn2.to_q" in key:
            share = 0.25
        want[key] = ((1 - share) * value.astype("float64") + share * b.weights[key]).astype("f4")
    got, _ = read_safetensors(tmp_path / "out.safetensors")
    for name, value in a.tensors(want)[""].items():
        if not name.startswith(("model_ema", "first_stage")):
            np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_shards_and_names_of_language_models(three: list[Path], tmp_path: Path) -> None:
    base, a, b = three
    parts = small_models.write(tmp_path / "parts", small_models.read(a), shards=3)
    merged(tmp_path / "one", (a, 1.0), (b, 0.5), base=base)
    merged(tmp_path / "out", (parts, 1.0), (b, 0.5), base=base)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 3
    assert small_bytes(tmp_path / "out") == small_bytes(tmp_path / "one")


def test_text_encoders_and_vae_of_others(tmp_path: Path) -> None:
    a = single(tmp_path / "a.safetensors", "sd15", "F32", seed=1)
    b = folder(tmp_path / "b", "sd15", "F32", seed=2)
    vae = {
        "decoder.conv_in.weight": np.ones((4, 3, 3, 3), "f4"),
        "decoder.conv_in.bias": np.ones(4, "f4"),
    }
    write_safetensors(tmp_path / "vae.safetensors", vae)
    merged(tmp_path / "out.safetensors", (a.path, 0.5), (b.path, 0.5), text_encoder=b.path,
           vae=tmp_path / "vae.safetensors")  # fmt: skip
    want = {
        k: b.weights[k] if k.startswith("text") else 0.5 * (v + b.weights[k])
        for k, v in a.weights.items()
    }
    got, _ = read_safetensors(tmp_path / "out.safetensors")
    for name, value in a.tensors(want)[""].items():
        if name.startswith("first_stage_model."):
            assert np.array_equal(got[name], vae[name.removeprefix("first_stage_model.")])
        elif not name.startswith("model_ema"):
            np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    refused(FormatError, "stored in another layout", tmp_path / "out2.safetensors",
            (a.path, 0.5), (b.path, 0.5), vae=b.path)  # fmt: skip
    unet = unet_alone(tmp_path / "unet.safetensors", "sd15", "model.diffusion_model.")
    refused(FormatError, "lacks text encoders", tmp_path / "out3.safetensors",
            (a.path, 0.5), (b.path, 0.5), text_encoder=unet.path)  # fmt: skip


# --- tensors that some lack -----------------------------------------------------------------------


@pytest.fixture
def uneven(three: list[Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """The base, a model without a bias, and one with a norm more."""
    base, a, b = three
    lacks = {n: v for n, v in small_models.read(a).items() if not n.endswith(".bias")}
    more = small_models.read(b) | {"model.norm.weight": np.ones(8, "float16")}
    return (
        base,
        small_models.write(tmp_path / "lacks", lacks),
        small_models.write(tmp_path / "more", more),
    )


def test_missing_and_extra_tensors_are_listed(
    uneven: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, lacks, more = uneven
    with pytest.raises(FormatError) as caught:
        merged(tmp_path / "out", (base, 0.5), (lacks, 0.25), (more, 0.25))
    text = str(caught.value.found)
    assert "lacks model.layers.0.attn.q_proj.bias" in text.replace("lacks lacks", "lacks")
    assert "more has model.norm.weight" in text
    assert not (tmp_path / "out").exists()


def test_union_first(uneven: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, lacks, more = uneven
    merged(tmp_path / "out", (base, 0.5), (lacks, 0.25), (more, 0.25), union="first")
    got, here = small_models.read(tmp_path / "out"), small_models.read(base)
    bias = "model.layers.0.attn.q_proj.bias"
    assert got[bias].tobytes() == here[bias].tobytes()
    assert np.array_equal(got["model.norm.weight"], np.ones(8, "float16"))
    assert got.keys() == here.keys() | {"model.norm.weight"}


def test_union_zero(uneven: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, lacks, more = uneven
    merged(tmp_path / "out", (base, 0.5), (lacks, 0.25), (more, 0.25), union="zero", dtype="F64")
    got, bias = small_models.read(tmp_path / "out"), "model.layers.0.attn.q_proj.bias"
    want = 0.5 * wide(base)[bias] + 0.25 * wide(more)[bias]
    np.testing.assert_allclose(got[bias], want, atol=1e-12)
    assert np.array_equal(got["model.norm.weight"], 0.25 * np.ones(8))
    merged(tmp_path / "based", (lacks, 0.5), (base, 0.0), base=base, union="zero", dtype="F64")
    np.testing.assert_allclose(small_models.read(tmp_path / "based")[bias], wide(base)[bias])


def test_tied_embeddings(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    tensors = small_models.read(b)
    del tensors["lm_head.weight"]
    tied = small_models.write(tmp_path / "tied", tensors, tie_word_embeddings=True)
    merged(tmp_path / "out", (a, 0.5), (tied, 0.5), dtype="F64")
    want = 0.5 * (wide(a)["lm_head.weight"] + wide(tied)["model.embed_tokens.weight"])
    np.testing.assert_allclose(small_models.read(tmp_path / "out")["lm_head.weight"], want)
    with pytest.raises(FormatError, match="shares the weight of its output layer"):
        merged(tmp_path / "other", (tied, 0.5), (a, 0.5), union="first")
