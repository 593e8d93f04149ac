"""Weights per block, by depth and by pattern: which modules get which number."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter import Adapter, Info, LowRank, Site
from loramerge.adapter.load import load
from loramerge.algebra.blocks import PRESETS, VECTORS, block_label, block_order, check_vector
from loramerge.algebra.mix import mix
from loramerge.algebra.weights import Weight, weight_of
from loramerge.dialects.detection import Detection
from loramerge.errors import UsageError
from loramerge.families import FAMILIES, Family
from tests.builders.deltas import rng
from tests.builders.samples import safetensors_bytes

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
    with pytest.raises(UsageError, match="cannot have 13 values"):
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


# ---- Flux, whose modules are named as each program spells them

# enough of Flux for its shapes to tell the family whatever stands beside them
SINGLES = [f"lora_unet_single_blocks_{n}_linear2" for n in range(12)]
# what a stem has → the suffixes its program writes
SUFFIXES = (
    (r"_lora$", (".down.weight", ".up.weight")),
    (r"\.", (".lora_A.weight", ".lora_B.weight")),
    (r"", (".lora_down.weight", ".lora_up.weight")),
)
# real listing → modules of each double and each single block
MODULES_PER_BLOCK = {
    "invoke_flux_lora_aitoolkit_format": (8, 2),
    "invoke_flux_lora_diffusers_format": (14, 6),
    "invoke_flux_lora_kohya_with_te1_format": (10, 3),
}
LISTINGS = tuple(MODULES_PER_BLOCK)
EACH = tuple(1.0 + n / 100 for n in range(61))  # no two blocks have the same
BLOCK_3 = re.compile(r"double_blocks[._]3[._]|(?<!single_)transformer_blocks[._]3[._]")


# modules that relatives have, too: only the shape tells whose they are
SHAPES = {
    "lora_unet_img_in": (3072, 64),
    "lora_unet_txt_in": (3072, 4096),
    **dict.fromkeys(SINGLES, (3072, 15360)),
}


def of_stems(folder: Path, stems: Iterable[str]) -> Adapter:
    """An adapter read from a file with these stems."""
    tensors = {}
    for stem in stems:
        down, up = next(pair for sign, pair in SUFFIXES if re.search(sign, stem))
        rows, columns = SHAPES.get(stem, (42, 3))  # 2, 3 or 7 parts share 42 rows
        tensors[stem + down] = np.ones((1, columns), "float32")
        tensors[stem + up] = np.ones((rows, 1), "float32")
    (folder / "made.safetensors").write_bytes(safetensors_bytes(tensors))
    return load(folder / "made.safetensors").require_sound()


def of_listing(data: Path, folder: Path, name: str) -> Adapter:
    """An adapter with the keys of a real one and seeded weights of its shapes, at rank 1."""
    content = json.loads((data / "listings" / f"{name}.json").read_text("utf-8"))
    random, tensors = rng(7), {}
    for key, (shape, *_) in content["keys"].items():
        small = [1 if ("down" in key or "lora_A" in key) == (axis == 0) else n
                 for axis, n in enumerate(shape)]  # fmt: skip
        tensors[key] = (
            random.standard_normal(small, "float32") if shape else np.array(1.0, "float32")
        )
    (folder / "real.safetensors").write_bytes(safetensors_bytes(tensors))
    return load(folder / "real.safetensors").require_sound()


def vector(length: int, **changed: float) -> Weight:
    """1 everywhere but at some blocks."""
    return Weight(blocks=tuple(changed.get(label, 1.0) for label in VECTORS[length]))


@pytest.mark.parametrize(
    ("stem", "label"),
    [
        # sd-scripts
        ("lora_unet_double_blocks_3_img_attn_qkv", "D03"),
        ("lora_unet_single_blocks_37_modulation_lin", "S37"),
        ("lora_unet__double_blocks_18_txt_mlp_0", "D18"),
        ("lora_unet_img_in", "IN"),
        ("lora_unet_txt_in", "IN"),
        ("lora_unet_time_in_in_layer", "IN"),
        ("lora_unet_vector_in_out_layer", "IN"),
        ("lora_unet_guidance_in_in_layer", "IN"),
        ("lora_unet_final_layer_linear", "OUT"),
        ("lora_unet_final_layer_adaLN_modulation_1", "OUT"),
        ("lora_te1_text_model_encoder_layers_3_mlp_fc1", "CLIP"),
        ("lora_te3_encoder_block_3_layer_0_SelfAttention_q", "T5"),
        # OneTrainer
        ("lora_transformer_transformer_blocks_11_attn_to_k", "D11"),
        ("lora_transformer_single_transformer_blocks_11_attn_to_k", "S11"),
        ("lora_te2_encoder_block_3_layer_1_DenseReluDense_wi_0", "T5"),
        ("transformer.double_blocks.7.img_attn.qkv.1", "D07"),
        ("transformer.single_blocks.7.linear1.3", "S07"),
        # ai-toolkit, ComfyUI, the original names
        ("diffusion_model.double_blocks.10.txt_mlp.2", "D10"),
        ("diffusion_model.single_blocks.10.linear1", "S10"),
        ("diffusion_model.final_layer.linear", "OUT"),
        ("diffusion_model.img_in", "IN"),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1", "CLIP"),
        ("text_encoders.t5xxl.transformer.encoder.block.3.layer.0.SelfAttention.q", "T5"),
        ("double_blocks.0.img_attn.qkv", "D00"),
        # XLabs
        ("single_blocks.4.processor.qkv_lora", "S04"),
        # diffusers and PEFT
        ("transformer.transformer_blocks.3.attn.add_q_proj", "D03"),
        ("transformer.single_transformer_blocks.30.proj_out", "S30"),
        ("transformer.proj_out", "OUT"),
        ("transformer.norm_out.linear", "OUT"),
        ("transformer.x_embedder", "IN"),
        ("transformer.context_embedder", "IN"),
        ("transformer.time_text_embed.guidance_embedder.linear_1", "IN"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", "CLIP"),
        ("text_encoder.encoder.layers.0.self_attn.q_proj", "CLIP"),
        ("text_encoder_2.encoder.block.0.layer.0.SelfAttention.q", "T5"),
        ("base_model.model.transformer_blocks.12.ff.net.2", "D12"),
    ],
)
def test_a_block_of_flux_is_found_in_every_spelling(stem: str, label: str, tmp_path: Path) -> None:
    a = of_stems(tmp_path, [stem, *SINGLES])
    assert a.family is not None and a.family.name == "flux1"
    name = next(site for (site, _), (_, key) in a.info.spelling.items() if key.startswith(stem))
    expected = dict(zip(VECTORS[61], EACH, strict=True)).get(label, 9.0)
    assert Weight(9.0, blocks=EACH).on(a)(name) == expected
    short = dict(zip(VECTORS[57], EACH, strict=False)).get(label, 9.0)
    assert Weight(9.0, blocks=EACH[:57]).on(a)(name) == short


def test_the_vectors_of_flux_name_the_fields_blocks() -> None:
    assert (len(VECTORS[57]), len(VECTORS[61])) == (57, 61)
    long = VECTORS[61]
    assert long[:4] == ("CLIP", "T5", "IN", "D00") and long[3:60] == VECTORS[57]
    assert (long[21], long[22], long[59], long[60]) == ("D18", "S00", "S37", "OUT")


@pytest.mark.long_tail(keep=2)
@pytest.mark.parametrize("length", [57, 61])
@pytest.mark.parametrize("name", LISTINGS)
def test_a_zero_removes_exactly_the_modules_of_its_block(
    name: str, length: int, shared_data: Path, tmp_path: Path
) -> None:
    a = of_listing(shared_data, tmp_path, name)
    result, _ = mix([(a, vector(length, D03=0.0))])
    gone = {site.name for site in a.deltas.keys() - result.deltas.keys()}
    assert gone == {site.name for site in a.deltas if BLOCK_3.search(site.name)}
    assert len(gone) == MODULES_PER_BLOCK[name][0]
    assert all(result.deltas[site] is a.deltas[site] for site in result.deltas)


@pytest.mark.parametrize("name", LISTINGS)
def test_a_weight_counts_once_and_keeps_its_sign(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    a = of_listing(shared_data, tmp_path, name)
    result, _ = mix([(a, vector(57, D03=-0.5, S20=2.0))])
    found: Counter[float] = Counter()
    for site, delta in result.deltas.items():
        before = a.deltas[site]
        assert isinstance(delta, LowRank) and isinstance(before, LowRank)
        (up, down), (up_before, down_before) = delta.factors(), before.factors()
        ratio = (up * down.sum() / (up_before * down_before.sum())).mean()
        found[round(float(ratio), 5)] += 1
    assert set(found) == {1.0, -0.5, 2.0}
    assert (found[-0.5], found[2.0]) == MODULES_PER_BLOCK[name]


def test_text_encoders_are_blocks_of_their_own(shared_data: Path, tmp_path: Path) -> None:
    a = of_listing(shared_data, tmp_path, LISTINGS[2])
    result, _ = mix([(a, vector(61, CLIP=0.0))])
    gone = a.deltas.keys() - result.deltas.keys()
    assert len(gone) == 72 and {site.component for site in gone} == {"text_encoder"}
    assert len(mix([(a, vector(57))])[0].deltas) == len(a.deltas)  # 57 values name none of them


def test_patterns_and_components_go_before_blocks_of_flux(tmp_path: Path) -> None:
    a = of_stems(tmp_path, [*SINGLES, "lora_te1_text_model_encoder_layers_0_mlp_fc1"])
    content = {"default": 9, "te": 0.25, "match": {"*single*blocks.2.*": 0.5}, "blocks": list(EACH)}
    of = weight_of(content, "here").on(a)
    found = {site.name: of(site) for site in a.deltas}
    single = "transformer.single_transformer_blocks"
    assert found[f"{single}.2.proj_out"] == 0.5
    assert found[f"{single}.1.proj_out"] == EACH[VECTORS[61].index("S01")]
    assert found["text_encoder.text_model.encoder.layers.0.mlp.fc1"] == 0.25


def test_qwen_image_is_not_taken_for_flux(shared_data: Path, tmp_path: Path) -> None:
    a = of_listing(shared_data, tmp_path, "invoke_qwen_image_lora_diffusers_format")
    for length in (57, 61):
        with pytest.raises(UsageError) as caught:
            vector(length).on(a)
        text = str(caught.value)
        assert "real.safetensors" in text and "Qwen-Image" in text


@pytest.mark.parametrize(
    ("stems", "words"),
    [
        (["transformer.transformer_blocks.0.attn.to_q"], "transformer_blocks alone"),
        (["lora_transformer_transformer_blocks_0_attn_to_k"], "transformer_blocks alone"),
        ([*SINGLES, "lora_unet_double_blocks_19_img_mlp_0"], "an adapter of hunyuan-video"),
        ([*SINGLES, "lora_unet_single_blocks_47_linear1"], "such as S47"),
        ([*SINGLES, "lora_unet_single_blocks_77_linear1"], "such as S77"),
        (["diffusion_model.double_blocks.0.img_attn_qkv", *SINGLES], "an adapter of hunyuan-video"),
        (["diffusion_model.joint_blocks.0.x_block.attn.qkv"], "an adapter of sd3"),
        (["lora_unet_blocks_0_cross_attn_k"], "an adapter of wan"),
        (["lora_unet_some_blocks_0_attn_k"], "no block of Flux"),
    ],
)
def test_block_vectors_for_ambiguous_models_are_refused(
    stems: list[str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        vector(57).on(of_stems(tmp_path, stems))
    assert words in str(caught.value) and "made.safetensors" in str(caught.value)


@pytest.mark.parametrize("length", [57, 61])
def test_vectors_of_flux_are_refused_for_stable_diffusion(length: int) -> None:
    for adapter in (empty(SD15), empty(SDXL), empty(SD15, FAMILIES["sd21"])):
        with pytest.raises(UsageError) as caught:
            vector(length).on(adapter)
        text = str(caught.value)
        assert f"{length} values is for Flux" in text and "12 or 20 values for SDXL" in text
    with pytest.raises(UsageError, match="names blocks that sdxl lacks"):
        check_vector((1.0,) * length, SDXL)


def test_vectors_of_stable_diffusion_are_refused_for_flux(tmp_path: Path) -> None:
    a = of_stems(tmp_path, SINGLES)
    with pytest.raises(UsageError) as caught:
        Weight(blocks=(1.0,) * 17).on(a)
    text = str(caught.value)
    assert "17 values is for the UNet" in text and "found: an adapter of Flux" in text
    assert "57 or 61" in text
    with pytest.raises(UsageError, match="by depth are for the UNet"):
        Weight(depth=(0.0, 1.0)).on(a)
