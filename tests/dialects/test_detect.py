"""Which family an adapter belongs to, and when nothing can tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest

from loramerge.dialects.classify import classify
from loramerge.dialects.detect import detect
from loramerge.dialects.detection import Detection
from loramerge.families import FAMILIES, Module
from tests.builders.samples import (
    STABLE_DIFFUSION,
    adaptable,
    attention,
    sayable,
    stem_of,
    suffixes_of,
)
from tests.tail import tail

DIALECTS = ("kohya", "diffusers", "diffusers-legacy", "peft")


def keys_of(dialect: str, family: str, names: Iterable[str]) -> list[str]:
    return [
        stem_of(dialect, family, name) + suffixes_of(dialect, name)[role]
        for name in names
        for role in ("down", "up")
    ]


def detected(
    dialect: str,
    family: str,
    modules: Mapping[str, Module],
    metadata: Mapping[str, str] = {},
    *,
    shapes: bool = True,
) -> Detection:
    keys = keys_of(dialect, family, modules)
    groups = classify(keys, metadata).groups
    by_stem = {stem_of(dialect, family, name): m.shape for name, m in modules.items()}
    known = {(g.dialect, g.stem): by_stem[g.stem] for g in groups} if shapes else {}
    return detect(groups, known, metadata)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("family", STABLE_DIFFUSION)
def test_a_whole_adapter_tells_its_family(dialect: str, family: str) -> None:
    found = detected(dialect, family, attention(family, full=True))
    assert found.name == family
    assert "by shape too" in found.reason


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("family", STABLE_DIFFUSION)
def test_cross_attention_alone_tells_the_family(dialect: str, family: str) -> None:
    chosen = {n: m for n, m in attention(family, full=True).items() if "attn2.to_k" in n}
    assert detected(dialect, family, chosen).name == family


@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_positions_and_shapes_tell_the_family(family: str) -> None:
    chosen = sayable("lora_diffusion", family, attention(family, full=True))
    assert detected("lora_diffusion", family, chosen).name == family


@pytest.mark.parametrize("family", STABLE_DIFFUSION)
def test_the_text_encoder_alone_names_the_family_among_few(family: str) -> None:
    chosen = {n: m for n, m in attention(family, full=True).items() if n.startswith("text")}
    found = detected("diffusers", family, chosen)
    assert FAMILIES[family] in found.candidates
    encoders = {family, "sdxl", "sd15", "sdxl-refiner", "flux1", "sd3", "sd35-medium", "sd35-large"}
    assert {f.name for f in found.candidates} <= encoders


def test_convolutions_tell_sd1_from_sd2_without_shapes_of_attention() -> None:
    for family in ("sd15", "sd21"):
        chosen = {n: m for n, m in adaptable(family, full=True).items() if n.endswith("proj_in")}
        assert detected("kohya", family, chosen).name == family


def test_pointwise_convolutions_stored_flat_do_not_make_sd1_sd2() -> None:
    chosen = {
        n: m._replace(shape=m.shape[:2] if m.shape[2:] == (1, 1) else m.shape)
        for n, m in adaptable("sd15", full=True).items()
        if ".attentions." in n
    }
    assert detected("kohya", "sd15", chosen).name == "sd15"


def ambiguous() -> dict[str, Module]:
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    return {name: adaptable("sd15", full=True)[name]}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_one_module_that_two_families_share_is_not_guessed(dialect: str) -> None:
    found = detected(dialect, "sd15", ambiguous())
    assert found.family is None
    assert found.name == "sd15 or sd21"
    assert found.naming is FAMILIES["sd15"]
    assert "all of these" in found.reason


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, "sd21"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd15"),
        ({"ss_base_model_version": "sd_v2_768_v"}, "sd21"),
        ({"ss_base_model_version": "sd_v1"}, "sd15"),
    ],
)
def test_metadata_decides_where_nothing_else_does(metadata: dict[str, str], family: str) -> None:
    found = detected("kohya", "sd15", ambiguous(), metadata)
    assert found.name == family
    assert next(iter(metadata)) in found.reason


def test_metadata_that_contradicts_names_is_not_believed() -> None:
    lie = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
    assert detected("kohya", "sd21", attention("sd21", full=True), lie).name == "sd21"
    assert detected("kohya", "sd15", ambiguous(), lie).family is None


def test_the_header_can_state_that_no_family_is_known() -> None:
    keys = ["lora_unet_some_blocks_0_linear1.lora_down.weight",
            "lora_unet_some_blocks_0_linear1.lora_up.weight"]  # fmt: skip
    found = detect(classify(keys, {}).groups, {}, {})
    assert found.candidates == () and found.naming is None and found.name is None
    assert detect([], {}, {}).reason == "the file has no module with a known suffix"


@pytest.mark.parametrize("family", STABLE_DIFFUSION)
def test_a_few_strangers_do_not_hide_the_family(family: str) -> None:
    keys = keys_of("kohya", family, attention(family, full=True))
    strangers = [f"lora_unet_stranger_{i}.lora_down.weight" for i in range(20)]
    shapes = {
        ("kohya", stem_of("kohya", family, n)): m.shape
        for n, m in attention(family, full=True).items()
    }
    assert detect(classify(strangers + keys, {}).groups, shapes, {}).name == family


# that have no layers for the text beside those of the image
ONE_STREAM = {"krea2", "qwen-image-21"}


@pytest.mark.parametrize("leaf", ["to_q", "to_out.0", "add_k_proj"])
@pytest.mark.parametrize(
    ("width", "block", "families"),
    [
        (3072, 0, {"flux1", "qwen-image", "flux2-klein-4b"}),
        (3072, 5, {"flux1", "qwen-image"}),  # klein 4B has five double blocks
        (6144, 7, {"flux2-dev", "krea2"}),
        (4096, 7, {"flux2-klein-9b", "qwen-image-21"}),
        *((2432, block, {"sd35-large"}) for block in (0, 5)),
        *((1536, block, {"sd3", "sd35-medium"}) for block in (0, 5)),
    ],
)
def test_transformers_with_common_names_are_distinguished_by_width_alone(
    width: int, families: set[str], leaf: str, block: int
) -> None:
    stem = f"transformer.transformer_blocks.{block}.attn.{leaf}"
    keys = [f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"]
    groups = classify(keys, {}).groups
    found = detect(groups, {("diffusers", stem): (width, width)}, {})
    expected = families - ONE_STREAM if leaf == "add_k_proj" else families
    assert {family.name for family in found.candidates} == expected


@pytest.mark.parametrize(
    "stem",
    [
        "lora_unet_double_blocks_19_img_attn_qkv",
        "lora_unet_single_blocks_0_modulation_linear",
        "diffusion_model.double_blocks.0.img_attn_qkv",
        "lora_unet_double_blocks_0_txt_mlp_fc1",
    ],
)
def test_relatives_of_flux_are_not_taken_for_it(stem: str) -> None:
    """HunyuanVideo has one block more of either sort, and other words for some layers."""
    keys = [
        f"{one}.lora_{role}.weight"
        for one in ("lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_0_linear1", stem)
        for role in ("down", "up")
    ]  # fmt: skip
    assert detect(classify(keys, {}).groups, {}, {}).name == "hunyuan-video"


def told(stems: Mapping[str, tuple[int, int]], *, known: bool = True) -> Detection:
    """What is detected of factors of given stems; `known`: their shapes are."""
    keys = [f"{stem}.lora_{role}.weight" for stem in stems for role in ("A", "B")]
    groups = classify(keys, {}).groups
    return detect(groups, {(g.dialect, g.stem): stems[g.stem] for g in groups} if known else {}, {})


@pytest.mark.parametrize(
    ("family", "stems"),
    [
        ("flux2-dev", {"diffusion_model.single_blocks.0.linear1": (55296, 6144)}),
        ("flux2-klein-9b", {"diffusion_model.single_blocks.0.linear1": (36864, 4096)}),
        ("flux2-klein-4b", {"diffusion_model.single_blocks.0.linear1": (27648, 3072)}),
        ("flux1", {"diffusion_model.single_blocks.0.linear1": (21504, 3072)}),
        ("flux2-klein-4b", {"lora_unet_double_blocks_0_img_mlp_0": (18432, 3072)}),
        ("flux1", {"lora_unet_double_blocks_0_img_mlp_0": (12288, 3072)}),
        ("hunyuan-video", {"lora_unet_double_blocks_0_img_mlp_fc1": (12288, 3072)}),
        ("hunyuan-video", {"diffusion_model.double_blocks.0.img_attn_qkv": (9216, 3072)}),
        ("hunyuan-video", {"transformer.double_blocks.0.img_attn_qkv": (9216, 3072)}),
        ("hunyuan-video", {"transformer.single_transformer_blocks.0.attn.to_q": (3072, 3072),
                           "transformer.single_transformer_blocks.39.attn.to_q": (3072, 3072)}),
        ("lumina2", {"diffusion_model.layers.0.attention.qkv": (3840, 2304)}),
        ("z-image", {"diffusion_model.layers.0.attention.qkv": (11520, 3840)}),
        ("z-image", {"diffusion_model.layers.0.attention.to_q": (3840, 3840)}),
        ("lumina2", {"transformer.layers.0.attn.to_k": (768, 2304)}),
        ("ltx-video", {"diffusion_model.transformer_blocks.0.attn2.to_k": (2048, 2048)}),
        ("ltx-video-13b", {"diffusion_model.caption_projection.linear_1": (4096, 4096),
                           "diffusion_model.transformer_blocks.0.attn2.to_k": (4096, 4096)}),
        ("ltx-2", {"diffusion_model.transformer_blocks.0.audio_attn2.to_k": (2048, 2048)}),
        ("ltx-2 or ltx-video-13b",
         {"diffusion_model.transformer_blocks.0.attn2.to_k": (4096, 4096)}),
        ("krea2", {"diffusion_model.blocks.0.attn.wk": (1536, 6144)}),
        ("ideogram4", {"conditional_transformer.layers.0.attention.qkv": (13824, 4608)}),
        ("minimax-h3", {"lora_unet_blocks_0_attn_qkv_proj": (21504, 5376)}),
        ("ernie-image", {"transformer.layers.0.self_attention.to_q": (3072, 3072)}),
        ("hidream-i1", {"diffusion_model.double_stream_blocks.0.block.ff_i.experts.3.w1":
                        (6912, 2560)}),
        ("flux3", {"diffusion_model.content_mode_blocks.image.0.q_proj": (3072, 3072)}),
        ("hunyuan-video-15", {"lora_unet_double_blocks_3_img_attn_q": (2048, 2048)}),
        ("hunyuan-video-15", {"diffusion_model.double_blocks.3.img_attn.qkv": (6144, 2048)}),
        ("hunyuan-image", {"lora_unet_single_blocks_3_linear1": (25088, 3584)}),
        ("wan", {"diffusion_model.vace_blocks.14.cross_attn.k": (1536, 1536)}),
        ("wan", {"diffusion_model.face_adapter.fuser_blocks.7.linear1_kv": (10240, 5120)}),
        ("kandinsky5",
         {"lora_unet_visual_transformer_blocks_3_self_attention_to_key": (1792, 1792)}),
        ("cogvideox or mochi", {"transformer.transformer_blocks.0.attn1.to_q": (3072, 3072)}),
        ("cogvideox", {"transformer.transformer_blocks.0.attn1.to_q": (1920, 1920)}),
        ("sana", {"transformer.transformer_blocks.0.attn2.to_k": (2240, 2240)}),
        ("pixart", {"transformer.transformer_blocks.0.attn2.to_k": (1152, 1152)}),
        ("ace-step", {"base_model.model.layers.0.cross_attn.k_proj": (1024, 2048)}),
        ("cosmos3", {"transformer.layers.0.self_attn.add_q_proj": (4096, 4096)}),
        ("auraflow", {"transformer.joint_transformer_blocks.0.attn.to_q": (3072, 3072)}),
        ("anima", {"transformer.transformer_blocks.0.attn2.to_k": (2048, 1024)}),
        ("anima", {"lora_unet_blocks_0_cross_attn_k_proj": (2048, 1024)}),
        ("anima", {"lora_unet_llm_adapter_blocks_0_cross_attn_k_proj": (1024, 1024)}),
        ("cosmos2-14b", {"diffusion_model.blocks.0.self_attn.q_proj": (5120, 5120)}),
        ("wan", {"diffusion_model.blocks.0.self_attn.q": (5120, 5120)}),
        ("wan", {"text_encoders.umt5xxl.transformer.encoder.block.3.layer.0.SelfAttention.q":
                 (4096, 4096)}),
    ],
)  # fmt: skip
def test_one_layer_tells_a_transformer(family: str, stems: dict[str, tuple[int, int]]) -> None:
    found = told(stems)
    assert found.name == family
    assert " or " in family or "by shape too" in found.reason


def test_an_adapter_of_a_language_model_alone_is_of_no_family() -> None:
    stem = "base_model.model.encoder.block.0.layer.0.SelfAttention.q"
    assert told({stem: (4096, 4096)}).candidates == ()
    stem = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    assert told({stem: (3584, 3584)}).candidates == ()
    assert told({f"text_encoder/{stem}": (3584, 3584)}).name == "qwen-image"


def test_relatives_that_name_other_modules_alike_are_not_guessed_between() -> None:
    """`linear1` is four modules of Flux.1 and one of Flux.2; only its height tells which."""
    stems = {"diffusion_model.single_blocks.0.linear1": (0, 0)}
    found = told(stems, known=False)
    assert found.candidates == () and "which use them for different modules" in found.reason
    assert told({"diffusion_model.single_blocks.0.linear1": (224, 32)}).name == "flux1"


def test_layers_that_networks_of_equal_width_share_are_not_guessed_between() -> None:
    stem = "transformer.transformer_blocks.0.attn1.to_q"
    assert told({stem: (2048, 2048)}).name == "anima or ltx-video"


def test_blocks_beyond_those_of_a_family_are_of_a_larger_one() -> None:
    """Lightning's names and widths are those of Flux.1, too, which has but 19 such blocks."""

    def stems(blocks: int) -> dict[str, tuple[int, int]]:
        return {f"transformer_blocks.{i}.attn.to_k": (3072, 3072) for i in range(blocks)}

    assert told(stems(60)).name == "qwen-image"
    assert told(stems(59), known=False).name == "qwen-image"
    assert told(stems(19)).name == "flux1 or qwen-image"
    assert told(stems(61)).candidates == ()  # of none that is known


def test_metadata_decides_between_networks_of_equal_width() -> None:
    stem = "transformer_blocks.0.attn.to_k"
    keys = [f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"]
    says = {"modelspec.architecture": "flux-1-dev/lora"}
    groups = classify(keys, says).groups
    assert detect(groups, {("bare", stem): (3072, 3072)}, says).name == "flux1"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_metadata_that_we_write_names_the_family(family: str) -> None:
    words = FAMILIES[family].metadata
    for value in (words.architecture, words.base_version):
        if value is not None:
            likeness = {name: f.metadata.likeness(value) for name, f in FAMILIES.items()}
            assert max(likeness, key=likeness.__getitem__) == family


def test_proportions_tell_networks_of_another_width() -> None:
    stems = {"diffusion_model.single_blocks.0.linear1": (9 * 32, 32)}
    assert told(stems).naming is FAMILIES["flux2-dev"]
    assert "flux1" not in {family.name for family in told(stems).candidates}


def test_tables_of_families_that_cannot_be_meant_are_not_made() -> None:
    from loramerge.families.spec import _components

    before = _components.cache_info().currsize
    seen = {family.name for family in FAMILIES.values() if family.occurs_in("lora_te_text_model")}
    assert not seen & {"flux2-dev", "z-image", "lumina2", "hunyuan-video", "ltx-video", "anima"}
    assert detected("kohya", "sd15", attention("sd15", full=True)).name == "sd15"
    assert _components.cache_info().currsize - before <= 4


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("name", [tail(n) for n, f in FAMILIES.items() if f.probes])
def test_a_probe_that_two_families_have_is_one_of_both(name: str) -> None:
    """Else a file of that module would be taken for the one family, and its tie not be seen."""
    probes = set(FAMILIES[name].probes)
    probed = {
        module.path: module.shape for _, module in FAMILIES[name].modules() if module.path in probes
    }
    for other in FAMILIES.values():
        found = {m.path for _, m in other.modules() if probed.get(m.path) == m.shape}
        assert not other.probes or found <= set(other.probes), other.name


# --- the tiny family, which only its shapes tell ------------------------------------------------


@pytest.mark.parametrize("dialect", ["kohya", "diffusers", "diffusers-legacy", "peft"])
def test_an_adapter_of_the_tiny_model_tells_its_family(dialect: str) -> None:
    found = detected(dialect, "tiny", attention("tiny", full=True))
    assert found.name == "tiny"
    assert "by shape too" in found.reason


def _of_another_width(modules: Mapping[str, Module]) -> dict[str, Module]:
    return {
        name: m._replace(shape=tuple(32 if n == 64 else n for n in m.shape))
        for name, m in modules.items()
    }


@pytest.mark.parametrize("guessed", [False, True])
def test_a_small_model_of_another_width_is_not_taken_for_it(guessed: bool) -> None:
    chosen = _of_another_width(attention("tiny", full=True))
    # as names alone would have it
    careless = [replace(FAMILIES["tiny"], shapes_only=False)] if guessed else []
    with FAMILIES.adding(*careless):
        assert (detected("kohya", "tiny", chosen).name == "tiny") == guessed


def test_without_shapes_nothing_is_taken_for_it() -> None:
    found = detected("kohya", "tiny", attention("tiny", full=True), shapes=False)
    assert "tiny" not in {family.name for family in found.candidates}
