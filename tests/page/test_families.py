"""Every verb that has weights takes the weights that the page offers for a family."""

from __future__ import annotations

import pytest

from loramerge.algebra.blocks import FLUX, PRESETS, block_order, check_vector
from loramerge.families import FAMILIES
from loramerge.page.families import component_words, families
from loramerge.steps.references import parse_reference

FOUND = {one["name"]: one for one in families()}


def test_families_of_the_field():
    assert (FOUND["sd15"]["components"], FOUND["sd15"]["vectors"]) == (
        ["unet", "te"],
        [17, 12, 20, 26],
    )
    assert (FOUND["sdxl"]["components"], FOUND["sdxl"]["vectors"]) == (
        ["unet", "te1", "te2"],
        [12, 20, 26],
    )
    assert (FOUND[FLUX]["vectors"], FOUND[FLUX]["depth"]) == ([57, 61], False)
    assert (FOUND["tiny"]["vectors"], FOUND["tiny"]["depth"]) == ([], True)
    assert FOUND["wan"]["components"] == ["transformer", "te", "transformer_2"]
    assert FOUND.keys() == FAMILIES.keys()
    assert {len(vector) for vector in PRESETS.values()} == {FOUND["sd15"]["vectors"][0]}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_offered_is_taken(name):
    family, found = FAMILIES[name], FOUND[name]
    for length in found["vectors"]:
        if name != FLUX:
            assert len(check_vector([1.0] * length, family)) == length
    assert found["depth"] == bool(block_order(family))
    text = ":".join(["a", *(f"{word}={n}" for n, word in enumerate(found["components"]))])
    weight = parse_reference(text).weight.components
    for n, component in enumerate(family.components):
        assert weight[component.name] == n


def test_the_components_of_an_adapter_have_the_words_of_its_family():
    assert component_words("sd15", {"unet": 3}) == ["unet"]
    assert component_words("sdxl", ("text_encoder_2", "unet")) == ["unet", "te2"]
    assert component_words("sd15", ()) == []
    assert component_words(None, ("unet",)) is None
