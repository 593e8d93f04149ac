"""Every key a dialect writes is read back as the same module and role, and as no other."""

from __future__ import annotations

import pytest

from loramerge.adapter.kinds import all_words
from loramerge.dialects import DIALECTS, PROGRAMS, Dialect, dialect, stem_table
from loramerge.dialects.classify import classify
from loramerge.dialects.spec import Form, StemTable
from loramerge.errors import FormatError
from loramerge.families import FAMILIES, Module
from tests.builders.samples import (
    STABLE_DIFFUSION,
    adaptable,
    attention,
    encoder_order,
    positional_order,
    sayable,
    stem_of,
)

STABLE = ("kohya", "diffusers", "diffusers-legacy", "peft", "lora_diffusion")
BOTH = [(d, f) for d in STABLE for f in STABLE_DIFFUSION]
NEVER_HAD = {("lora_diffusion", "sdxl"), ("lora_diffusion", "sdxl-refiner")}


def written_keys(name: str, family: str) -> dict[str, tuple[str, str]]:
    """Every key a dialect can write for a family → (module, role)."""
    keys: dict[str, tuple[str, str]] = {}
    for module, _ in FAMILIES[family].modules():
        for role in DIALECTS[name].roles(all_words()):
            key = DIALECTS[name].key(FAMILIES[family], module, role, all_words())
            if key is not None:
                assert key not in keys, f"{key} is {keys[key]} and {(module, role)}"
                keys[key] = (module, role)
    return keys


@pytest.mark.long_tail(keep=10)
@pytest.mark.parametrize(("name", "family"), BOTH)
def test_every_written_key_is_read_back(name: str, family: str) -> None:
    keys = written_keys(name, family)
    assert bool(keys) != ((name, family) in NEVER_HAD)
    result = classify(keys, {}, all_words())
    assert not result.unknown
    assert not result.embeddings
    table = stem_table(DIALECTS[name], FAMILIES[family])
    found = {
        key: (table[group.stem].module, role)
        for group in result.groups
        for role, key in group.roles.items()
    }
    assert found == keys
    assert {group.dialect for group in result.groups} <= {name}


@pytest.mark.parametrize(("name", "family"), BOTH)
def test_every_stem_has_one_module_of_the_family(name: str, family: str) -> None:
    table = stem_table(DIALECTS[name], FAMILIES[family])
    known = dict(FAMILIES[family].modules())
    assert {stem.module for stem in table.values()} <= set(known)


@pytest.mark.parametrize(("name", "family"), BOTH)
def test_every_module_a_dialect_has_words_for_is_spelled_as_people_spell_it(
    name: str, family: str
) -> None:
    if (name, family) in NEVER_HAD:
        assert not written_keys(name, family)  # the dialect is older than the family
        return
    modules: dict[str, Module] = sayable(name, family, adaptable(family, full=True))
    assert modules
    table = stem_table(DIALECTS[name], FAMILIES[family])
    for module in modules if name != "lora_diffusion" else list(modules)[::17]:
        stem = stem_of(name, family, module)
        assert table[stem].module == module
        key = DIALECTS[name].key(FAMILIES[family], module, "down")
        assert key is not None
        if name != "peft":  # which drops `text_model.` where transformers has
            assert key.startswith(stem)


def test_a_dialect_that_spells_two_modules_alike_is_refused() -> None:
    """Dropping dots and figures makes stems short, and two modules one."""

    def careless(family: object, modules: object) -> list[tuple[str, str]]:
        return [
            ("".join(c for c in name if c.isalpha()), name)
            for name, _ in FAMILIES["sd15"].modules()
        ]

    broken = Dialect(
        name="careless", title="", example="", forms=(Form(careless, {"up": (".up",)}),),  # type: ignore[arg-type]
        alpha="none", prefixes={}, writable="",
    )  # fmt: skip
    with pytest.raises(ValueError, match="careless spells two modules of sd15 alike"):
        dict(stem_table(broken, FAMILIES["sd15"]))


def test_underscores_and_dots_stay_apart() -> None:
    table = stem_table(DIALECTS["kohya"], FAMILIES["sd15"])
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    expected = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    assert table[stem].module == expected


@pytest.mark.parametrize(
    ("family", "unet", "encoders"),
    [("sd15", 192, 72), ("sd21", 192, 138), ("sdxl", 722, 264)],
)
def test_kohya_has_as_many_modules_as_its_files(family: str, unet: int, encoders: int) -> None:
    """The counts of real files trained with the default targets."""
    targets = [
        name
        for name in adaptable(family, full=True)
        if (name.startswith("text_encoder") and "text_projection" not in name)
        or ".attentions." in name
    ]  # fmt: skip
    keys = [DIALECTS["kohya"].key(FAMILIES[family], name, "down") for name in targets]
    assert sum(k is not None and k.startswith("lora_unet_") for k in keys) == unet
    assert sum(k is not None and k.startswith("lora_te") for k in keys) == encoders


def test_kohya_writes_sdxl_with_the_names_of_its_single_file() -> None:
    kohya, sdxl = DIALECTS["kohya"], FAMILIES["sdxl"]
    module = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    stem = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    assert kohya.key(sdxl, module, "down") == f"{stem}.lora_down.weight"
    assert kohya.key(sdxl, "unet.conv_in", "alpha") == "lora_unet_input_blocks_0_0.alpha"
    te2 = "text_encoder_2.text_model.encoder.layers.31.mlp.fc2"
    assert (
        kohya.key(sdxl, te2, "up") == "lora_te2_text_model_encoder_layers_31_mlp_fc2.lora_up.weight"
    )


@pytest.mark.parametrize("family", ["sdxl", "sdxl-refiner"])
def test_kohya_reads_sdxl_with_diffusers_names_too(family: str) -> None:
    table = stem_table(DIALECTS["kohya"], FAMILIES[family])
    for module in attention(family, full=True):
        component, _, path = module.partition(".")
        if component == "unet":
            assert table["lora_unet_" + path.replace(".", "_")].module == module


@pytest.mark.parametrize("name", ["kohya", "diffusers", "diffusers-legacy", "peft"])
@pytest.mark.parametrize("family", STABLE_DIFFUSION)
def test_text_encoders_are_read_with_and_without_text_model(name: str, family: str) -> None:
    table = stem_table(DIALECTS[name], FAMILIES[family])
    for component in FAMILIES[family].components:
        if component.name == "unet":
            continue
        module = f"{component.name}.text_model.encoder.layers.3.mlp.fc1"
        long = stem_of(name, family, module)
        assert table[long].module == module
        assert table[long.replace("text_model.", "").replace("text_model_", "")].module == module


@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_peft_writes_the_first_text_encoder_as_transformers_names_it(family: str) -> None:
    module = "text_encoder.text_model.encoder.layers.3.mlp.fc1"
    key = DIALECTS["peft"].key(FAMILIES[family], module, "down")
    assert key == "text_encoder/base_model.model.encoder.layers.3.mlp.fc1.lora_A.weight"


def test_peft_keeps_the_level_that_models_with_a_projection_keep() -> None:
    module = "text_encoder_2.text_model.encoder.layers.3.mlp.fc1"
    key = DIALECTS["peft"].key(FAMILIES["sdxl"], module, "down")
    assert (
        key == "text_encoder_2/base_model.model.text_model.encoder.layers.3.mlp.fc1.lora_A.weight"
    )


def positions(family: str, component: str) -> list[str]:
    return list(DIALECTS["lora_diffusion"].stems_of(FAMILIES[family], component).values())


@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_positions_are_counted_as_in_2022(family: str) -> None:
    unet = positions(family, "unet")
    encoder = positions(family, "text_encoder")
    assert unet == positional_order(family) and len(unet) == 144
    assert encoder == encoder_order(family) and len(encoder) == (48 if family == "sd15" else 92)


def test_todays_order_of_blocks_would_be_seen() -> None:
    """Attention, attention, feed-forward is the order of later releases; it puts widths wrong."""
    family = FAMILIES["sd15"]
    right = [name.removeprefix("unet.") for name in positions("sd15", "unet")]
    block = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q",
             "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "ff.net.0.proj")  # fmt: skip
    heads = [path.removesuffix(".attn1.to_q") for path in right[::9]]
    wrong = [f"{head}.{leaf}" for head in heads for leaf in block]
    shapes = [family.find(f"unet.{path}").shape for path in right]  # type: ignore[union-attr]
    swapped = [family.find(f"unet.{path}").shape for path in wrong]  # type: ignore[union-attr]
    assert sum(a != b for a, b in zip(shapes, swapped, strict=True)) == 64


def test_an_unknown_dialect_names_the_nearest() -> None:
    with pytest.raises(FormatError, match=r"did you mean kohya\?"):
        dialect("koyha")
    assert set(PROGRAMS.values()) <= set(DIALECTS)


def test_a_table_gives_the_same_in_parts_and_as_a_whole() -> None:
    """Parts that are made on demand are those of the whole, in whatever order they are asked for."""
    family, kohya = FAMILIES["sdxl"], DIALECTS["kohya"]
    whole = dict(stem_table(kohya, family))
    asked = StemTable(kohya, family)
    for stem in reversed(whole):
        assert asked.get(stem) == whole[stem]
    fresh = StemTable(kohya, family)
    assert (
        fresh["lora_unet_input_blocks_4_1_proj_in"] == whole["lora_unet_input_blocks_4_1_proj_in"]
    )
    assert fresh.get("lora_unet_nothing") is None and "lora_unet_nothing" not in fresh
    assert dict(fresh) == whole and len(fresh) == len(whole)


@pytest.mark.parametrize(
    ("stem", "family", "module"),
    [
        ("lycoris_transformer_blocks_0_attn_to_q", "sd3",
         "transformer.transformer_blocks.0.attn.to_q"),
        ("lycoris_blocks_1_attn1_to_k", "wan", "transformer.blocks.1.attn1.to_k"),
        ("lycoris_mid_block_attentions_0_proj_in", "sdxl", "unet.mid_block.attentions.0.proj_in"),
    ],
)  # fmt: skip
def test_lycoris_wrapper_names_diffusers_modules(stem: str, family: str, module: str) -> None:
    """As SimpleTuner writes them and ComfyUI reads them."""
    assert stem_table(DIALECTS["lycoris"], FAMILIES[family])[stem].module == module
