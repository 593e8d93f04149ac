from __future__ import annotations

import pytest

from loramerge.algebra.weights import Weight, weight_of
from loramerge.errors import UsageError
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


@pytest.mark.parametrize("number", [10**300, -(10**300), 10**400, 10**5000, 1e300, 4e38, float("nan"),
                                    float("inf")], ids=[*"abcdefgh"])  # fmt: skip
def test_a_weight_is_a_finite_number_of_float32(number: float) -> None:
    for content in (number, {"default": number}, {"unet": number}, {"match": {"*": number}},
                    {"blocks": [number] * 12}, {"depth": [number]}):  # fmt: skip
        with pytest.raises(UsageError, match="finite number of float32") as caught:
            weight_of(content, "weights: a")
        assert str(caught.value)


def test_the_largest_weight_is_that_of_float32() -> None:
    assert weight_of(3.4028234663852886e38, "a").default == 3.4028234663852886e38
