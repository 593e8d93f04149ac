"""Keys are taken apart the same whatever stands before them in a file."""

import random
from dataclasses import replace

import pytest

from loramerge.adapter.kinds import all_words
from loramerge.dialects import DIALECTS, stem_table
from loramerge.dialects.classify import classify
from loramerge.dialects.keys import any_names_an_adapter, names_an_adapter
from loramerge.dialects.words import NO_WORDS
from loramerge.families import FAMILIES

ROLES = ("up", "down", "alpha", "lokr_w1", "magnitude")
# whose stems or ends begin or end as others do
TRICKY = [
    "lora_unet_made_a.alpha",
    "lora_unet_a.alpha", "lora_unet__a.alpha", "lora_unet_a.b.alpha", "lora_unet_a.lora_A.alpha",
    "lora_te_a.alpha", "lora_te1_a.alpha", "lora_te2_a.alpha", "lora_unet.alpha", "lora_unet_.alpha",
    "oft_unet_a.alpha", "lora_unet_a.lora_down.weight", "lora_unet_ab.lora_down.weight",
    "lora_unet_unet_a_lora_up.weight", "unet.base_model.model.a.lora_A.weight", "unet.a.lora_A.weight",
    "unet.a.lora_A.default.weight", "unet.lora_A.weight", "transformer.a.lora_A.weight",
    "diffusion_model.a.lora_A.weight", "diffusion_model.a.lora_up.weight", "a.lora_A.weight",
    "unet:1:up", "unet:2:up", "text_encoder:1:up", "<token>", "bundle_emb.a.string_to_param.*",
    "unet.a.diff_m", "unet.a.lora_A", "unet.a.weight", "lora_unet_a.weight",
    "lora_unet_a_lora_up.weight",
]  # fmt: skip


def _keys(words, chosen):
    """Return keys of some modules of a few families in every dialect."""
    for dialect in DIALECTS.values():
        for name in ("sd15", "sdxl", "flux1", "wan-2.2-14b"):
            if name not in FAMILIES:
                continue
            stems = list(stem_table(dialect, FAMILIES[name]).items())
            for stem, what in chosen.sample(stems, min(3, len(stems))):
                ends = dialect.forms[what.form].spelled(words)
                yield from (stem + end for role in ROLES for end in ends.get(role, ()))


def _apart(keys, words):
    """Return key → (dialect, stem, role), None for unknown ones and embeddings."""
    found = classify(keys, {}, words)
    said = {key: (g.dialect, g.stem, role) for g in found.groups for role, key in g.roles.items()}
    return {key: said.get(key) for key in keys if key not in dict(found.doubled)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kinds", [False, True])
def test_a_key_is_taken_apart_as_it_is_alone(seed, kinds, monkeypatch):
    chosen = random.Random(seed)
    words = all_words() if kinds else NO_WORDS
    keys = list(dict.fromkeys([*TRICKY, *_keys(words, chosen)]))
    # groups of one stem are joined where one dialect has the roles of all: not what is asked here
    monkeypatch.setattr("loramerge.dialects.classify._joined", lambda groups, _: groups.values())
    longer = {"lora_unet_made_": "unet"}
    made_up = replace(DIALECTS["kohya"], name="made-up", prefixes=longer, order=200)
    with DIALECTS.adding(made_up):
        alone = {key: _apart([key], words)[key] for key in keys}
        assert alone["lora_unet_made_a.alpha"] == ("made-up", "lora_unet_made_a", "alpha")
        chosen.shuffle(keys)
        for order in (keys, sorted(keys), sorted(keys, key=lambda key: key[::-1])):
            for key, said in _apart(order, words).items():
                assert said == alone[key], key


@pytest.mark.parametrize(
    "keys",
    [
        [],
        ["a.lora_A.weight", "a.lora_B.weight"],
        ["a.lora_A.weight", "a.lora_A.default.weight", "b.alpha"],
        ["a.lora_A.default"],
        ["a.lora_A.weight\nx", "b.lora_B.weight"],
        ["a.lora_A.weight", "default.weight"],
        ["a.lora_A", ".default.weight"],
        ["a.lora_embedding_A.x", "a.lora_A.bias"],
    ],
)
def test_one_search_tells_whether_any_key_names_an_adapter(keys):
    assert any_names_an_adapter(keys) == any(map(names_an_adapter, keys))
