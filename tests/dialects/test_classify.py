"""Keys are classified one by one, and by known beginnings and ends only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loramerge.adapter.kinds import all_words, indicated, known_kinds
from loramerge.adapter.kinds.declaration import Kind
from loramerge.dialects.classify import Classified
from loramerge.dialects.classify import classify as classify_with
from loramerge.dialects.words import Words

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"


def classify(keys: list[str], metadata: dict[str, str], words: Words | None = None) -> Classified:
    return classify_with(keys, metadata, words or all_words())


def only(key: str) -> tuple[str, str, str]:
    """(dialect, stem, role) of a key that must be known."""
    result = classify([key], {})
    assert not result.unknown, key
    (group,) = result.groups
    ((role, _),) = group.roles.items()
    return group.dialect, group.stem, role


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (
            f"unet.{BLOCK}.attn1.to_q.lora_A.weight",
            ("diffusers", f"unet.{BLOCK}.attn1.to_q", "down"),
        ),
        (
            f"unet.{BLOCK}.attn1.to_q.lora_A.default.weight",
            ("diffusers", f"unet.{BLOCK}.attn1.to_q", "down"),
        ),
        (
            f"unet.{BLOCK}.attn1.to_q.lora.down.weight",
            ("diffusers-legacy", f"unet.{BLOCK}.attn1.to_q", "down"),
        ),
        (f"{BLOCK}.attn1.to_q.lora.up.weight", ("diffusers-legacy", f"{BLOCK}.attn1.to_q", "up")),
        (
            f"{BLOCK}.attn1.processor.to_q_lora.down.weight",
            ("diffusers-legacy", f"{BLOCK}.attn1.processor.to_q_lora", "down"),
        ),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
            ("diffusers-legacy", "text_encoder.text_model.encoder.layers.0.self_attn.q_proj", "up"),
        ),
        (
            "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight",
            ("peft", "base_model.model.transformer.h.0.attn.c_attn", "up"),
        ),
        (
            "base_model.model.classifier.weight",
            ("peft", "base_model.model.classifier", "set_weight"),
        ),
        ("unet:17:up", ("lora_diffusion", "unet:17", "up")),
        ("lora_unet_x.hada_w1_a", ("kohya", "lora_unet_x", "hada_w1_a")),
        ("lora_unet_x.a1.weight", ("kohya", "lora_unet_x", "a1")),
        ("lora_unet_x.weight", ("kohya", "lora_unet_x", "ia3_weight")),
        ("lora_unet_x.lora_mid.weight", ("kohya", "lora_unet_x", "mid")),
        ("lora_unet_x.lora_A.weight", ("kohya", "lora_unet_x", "down")),
        ("lora_te2_x.dora_scale", ("kohya", "lora_te2_x", "dora_scale")),
    ],
)
def test_a_key_says_its_dialect_stem_and_role(key: str, expected: tuple[str, str, str]) -> None:
    assert only(key) == expected


@pytest.mark.parametrize(
    "key",
    [
        "down_blocks.0.weight",
        "down_blocks.0.down.weight",
        "model.down.weight",
        "up_blocks.0.attentions.0.up.weight",
        "unet.down_blocks.0.down.weight",
        "unet.mid_block.down_proj.weight",
        "conv_in.weight",
        "first_stage_model.encoder.down.0.block.0.conv1.weight",
        "nonsense",
        "a.b.c",
        "",
    ],
)
def test_down_in_a_name_is_no_role(key: str) -> None:
    result = classify([key], {})
    assert result.unknown == [key]


def test_looking_for_down_anywhere_would_be_seen() -> None:
    """The field's short cut: `"down" in key`."""

    def careless(key: str) -> str:
        return "down" if "down" in key else "up"

    key = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.up.weight"
    assert only(key)[2] == "up" != careless(key)


def test_dialects_may_be_mixed_in_one_file() -> None:
    keys = [
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight",
        "lora_unet_mid_block_attentions_0_proj_in.alpha",
        f"unet.{BLOCK}.attn1.to_q.lora_A.weight",
        f"unet.{BLOCK}.attn1.to_q.lora_B.weight",
        f"unet.{BLOCK}.attn1.to_k.lora.down.weight",
        f"unet.{BLOCK}.attn1.to_k.lora.up.weight",
    ]
    result = classify(keys, {})
    assert [g.dialect for g in result.groups] == ["kohya", "diffusers", "diffusers-legacy"]
    assert [set(g.roles) for g in result.groups] == [
        {"down", "up", "alpha"}, {"down", "up"}, {"down", "up"},
    ]  # fmt: skip
    assert not result.unknown


def test_a_role_twice_is_not_taken_twice() -> None:
    keys = ["lora_unet_x.lora_down.weight", "lora_unet_x.lora_A.weight"]
    result = classify(keys, {})
    assert result.groups[0].roles == {"down": keys[0]}
    assert result.doubled == [(keys[1], keys[0])] and not result.unknown


def test_embeddings_are_carried() -> None:
    keys = ["<s1>", "bundle_emb.cat.string_to_param.*", "token"]
    result = classify(keys, {"token": "<embed>"})
    assert result.embeddings == keys
    assert not result.groups and not result.unknown


# shapes tell which of the two it is
SHARED = {"oft": "boft"}


@pytest.mark.parametrize(
    "kind", [kind for kind in known_kinds() if kind.roles], ids=lambda k: k.name
)
def test_any_role_of_a_kind_betrays_it(kind: Kind) -> None:
    name = SHARED.get(kind.name, kind.name)
    for role in kind.roles:
        assert indicated({role})[0].name == name
        if kind.wraps:
            assert indicated({role, "up", "down", "alpha"})[0].name == name


@pytest.mark.parametrize("name", ["unknown", "set", "bias"])
def test_keys_that_kinds_may_spell_are_found_without_their_words(name: str) -> None:
    key = {
        "unknown": "lora_unet_x.hada_w1_a",
        "set": "base_model.model.x.oft_R.weight",
        "bias": "unet.x.lora_B.bias",
    }[name]
    assert classify_with([key], {}).needs_words


def test_ordinary_lora_needs_no_words() -> None:
    keys = [
        f"lora_unet_x.{end}" for end in ("lora_up.weight", "lora_down.weight", "alpha", "diff_b")
    ]
    assert not classify_with(keys, {}).needs_words
    assert classify_with(keys, {}).groups == classify(keys, {}).groups


@pytest.mark.parametrize(
    ("roles", "kind"),
    [
        ({"up", "down"}, "lora"),
        ({"up", "down", "alpha"}, "lora"),
        ({"up", "down", "mid"}, "tucker"),
        ({"diff"}, "full"),
        ({"diff_b"}, "bias"),
        ({"w_norm", "b_norm"}, "norm"),
        ({"set_weight"}, "set"),
        ({"up"}, "lora"),
        ({"down", "alpha"}, "lora"),
        ({"alpha"}, None),
        ({"up", "mid"}, "tucker"),
    ],
)
def test_roles_betray_kinds(roles: set[str], kind: str | None) -> None:
    found = indicated(roles)
    assert (found[0].name if found else None) == kind


# --- real listings -----------------------------------------------------------------------------


def listing(shared_data: Path, name: str) -> list[str]:
    content = json.loads((shared_data / "listings" / f"{name}.json").read_text("utf-8"))
    return list(content["keys"])


def complete(result: Classified) -> bool:
    return all({"up", "down"} <= set(group.roles) for group in result.groups)


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        ("invoke_flux_lora_kohya_with_te1_format", "kohya"),
        ("invoke_flux_lora_diffusers_format", "diffusers"),
    ],
)
def test_real_listings_of_known_dialects_leave_no_key(
    shared_data: Path, name: str, dialect: str
) -> None:
    keys = listing(shared_data, name)
    result = classify(keys, {})
    assert not result.unknown
    assert {group.dialect for group in result.groups} == {dialect}
    assert complete(result)
    assert sum(len(group.roles) for group in result.groups) == len(keys)


@pytest.mark.parametrize(
    "name", ["invoke_flux_lora_aitoolkit_format", "invoke_qwen_image_lora_diffusers_format"]
)
def test_real_listings_of_other_dialects_lose_no_key(shared_data: Path, name: str) -> None:
    keys = listing(shared_data, name)
    result = classify(keys, {})
    taken = [key for group in result.groups for key in group.roles.values()]
    assert sorted(taken + result.unknown + result.embeddings) == sorted(keys)


def test_suffixes_of_one_module_without_a_prefix_stay_together() -> None:
    """The magnitude of a DoRA beside its factors, in names of no known beginning."""
    ends = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
    keys = [f"block.{i}.to_q.{end}" for i in (0, 1) for end in ends]
    groups = classify(keys, {}).groups
    assert [(g.stem, set(g.roles)) for g in groups] == [
        (f"block.{i}.to_q", {"down", "up", "magnitude"}) for i in (0, 1)
    ]
    assert {g.dialect for g in groups} == {"diffusers"}


def test_one_module_in_two_spellings_is_not_joined() -> None:
    keys = [f"block.to_q.{end}.weight" for end in ("lora_A", "lora_B", "lora.down", "lora.up")]
    assert len(classify(keys, {}).groups) == 2
