from __future__ import annotations

import pytest

from loramerge.algebra.weights import Weight
from tests.builders.deltas import site


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (Weight(), "1"),
        (Weight(0.7), "0.7"),
        (Weight(1.0, {"unet": 0.5}), "unet=0.5"),
        (Weight(0.5, {"unet": -1.0, "text_encoder": 0.0}), "0.5:unet=-1:text_encoder=0"),
    ],
)
def test_text(weight: Weight, text: str) -> None:
    assert weight.text() == text


def test_a_component_overrides_the_default() -> None:
    weight = Weight(0.5, {"text_encoder": 0.0})
    assert weight.of(site("unet.a")) == 0.5
    assert weight.of(site("text_encoder.a:bias")) == 0.0
    assert weight.of(site("text_encoder_2.a")) == 0.5
