"""Weights per block, by depth and by pattern: which modules get which number."""

from __future__ import annotations

from collections import Counter

import pytest

from loramerge.adapter import Adapter, Info, Site
from loramerge.algebra.blocks import PRESETS, VECTORS, block_label, block_order, check_vector
from loramerge.algebra.weights import Weight, weight_of
from loramerge.dialects.detect import Detection
from loramerge.errors import UsageError
from loramerge.families import FAMILIES, Family

SD15, SDXL = FAMILIES["sd15"], FAMILIES["sdxl"]


def site(name: str) -> Site:
    return Site((name,))


def empty(*families: Family) -> Adapter:
    return Adapter({}, info=Info(detection=Detection(families, "made")))


@pytest.mark.parametrize(
    ("name", "sd15", "sdxl"),
    [
        ("unet.conv_in", "IN00", "IN00"),
        ("unet.down_blocks.0.resnets.0.conv1", "IN01", "IN01"),
        ("unet.down_blocks.1.attentions.0.proj_in", "IN04", "IN04"),
        ("unet.down_blocks.1.attentions.1.proj_in", "IN05", "IN05"),
        ("unet.mid_block.attentions.0.proj_in", "MID", "MID"),
        ("unet.up_blocks.1.attentions.0.proj_in", "OUT03", "OUT03"),
        ("unet.up_blocks.1.attentions.2.proj_out", "OUT05", "OUT05"),
        ("unet.time_embedding.linear_1", None, None),
        ("unet.conv_out", None, None),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "BASE", "BASE"),
    ],
)
def test_blocks_are_those_of_the_single_files(name: str, sd15: str, sdxl: str) -> None:
    assert block_label(site(name), SD15) == sd15
    assert block_label(site(name), SDXL) == sdxl


@pytest.mark.parametrize(("length", "family"), [(17, SD15), (26, SD15), (12, SDXL), (20, SDXL)])
def test_a_vector_names_every_block_with_attention(length: int, family: Family) -> None:
    """The short vectors name just the blocks a plain LoRA has; the long ones all."""
    attended = {
        block_label(site(name), family)
        for name, _ in family.modules()
        if name.endswith("attn1.to_q") or name.startswith("text_encoder")
    }
    assert attended <= set(VECTORS[length])
    if length in (12, 17):
        assert attended == set(VECTORS[length])


def test_presets_are_vectors_of_sd1() -> None:
    assert {len(values) for values in PRESETS.values()} == {17}
    weights = check_vector(PRESETS["OUTALL"], SD15)
    assert Counter(weights.values()) == {1.0: 10, 0.0: 7}
    assert weights["OUT03"] == 1.0 and weights["IN01"] == 0.0 and weights["BASE"] == 1.0


def test_vectors_of_another_family_are_refused() -> None:
    with pytest.raises(UsageError, match="names blocks that sdxl lacks"):
        Weight(blocks=(1.0,) * 17).on(empty(SDXL))
    with pytest.raises(UsageError, match="13 values has no meaning"):
        Weight(blocks=(1.0,) * 13).on(empty(SD15))
    with pytest.raises(UsageError, match="whose blocks are known"):
        Weight(blocks=(1.0,) * 17).on(empty())


def test_the_most_particular_weight_counts_and_none_multiply() -> None:
    vector = tuple(float(i) for i in range(17))
    weight = weight_of(
        {
            "default": 9,
            "te1": 3,
            "blocks": list(vector),
            "match": {"*attn2*": 0.5, "*.down_blocks.0.*attn2*": 0.25},
        },
        "here",
    )
    of = weight.on(empty(SD15))
    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    assert of(site(f"{block}.attn1.to_q")) == 1.0  # IN01
    assert of(site(f"{block}.attn2.to_q")) == 0.25  # the last pattern that matches
    assert of(site("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q")) == 0.5
    assert of(site("unet.mid_block.attentions.0.proj_in")) == 7.0
    assert of(site("text_encoder.text_model.final_layer_norm")) == 3.0  # not BASE
    assert of(site("unet.conv_out")) == 9.0  # in no block
    assert of(site("unet.conv_in")) == 9.0  # IN00 is not named by 17 values


def test_patterns_mind_the_case() -> None:
    of = weight_of({"match": {"*ATTN2*": 0.0}}, "here").on(empty(SD15))
    assert of(site("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q")) == 1.0


def test_depth_is_interpolated_from_the_first_block_to_the_last() -> None:
    of = weight_of({"depth": [0, 1, 0.5]}, "here").on(empty(SD15))
    order = block_order(SD15)
    assert (order[0], order[12], order[-1], len(order)) == ("IN00", "MID", "OUT11", 25)
    assert of(site("unet.conv_in")) == 0.0
    assert of(site("unet.mid_block.attentions.0.proj_in")) == 1.0
    assert of(site("unet.up_blocks.3.attentions.2.proj_in")) == 0.5
    assert of(site("unet.down_blocks.1.attentions.1.proj_in")) == pytest.approx(5 / 12)
    single = weight_of({"depth": [0.3]}, "here").on(empty(SD15))
    assert single(site("unet.conv_in")) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a", "expected a number"),
        (True, "expected a number"),
        ({"dfault": 1}, "did you mean default"),
        ({"blocks": "1,0"}, "list of numbers"),
        ({"blocks": [1, "x"]}, "expected a number"),
        ({"preset": "OUTAL"}, "did you mean OUTALL"),
        ({"preset": "ALL", "blocks": [1] * 17}, "not both"),
        ({"depth": [1], "blocks": [1] * 17}, "not both"),
        ({"match": [1]}, "patterns to numbers"),
        ({"unet": "x"}, "unet: expected a number"),
    ],
)
def test_mistakes_are_named(content: object, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        weight_of(content, "here")
    assert words in str(caught.value)
