from __future__ import annotations

import math

import numpy as np
import pytest

from loramerge.adapter import Adapter, Delta, LowRank
from loramerge.adapter.kinds.oft_diag import Foreign
from loramerge.algebra.compare import Moments, block_of, compare, verdict
from loramerge.algebra.mix import mix
from loramerge.algebra.weights import Weight
from loramerge.errors import NumericsError, ShapeError
from tests.builders.deltas import (
    adapter,
    full,
    low_rank,
    oracle,
    replacement,
    site,
    tensor,
    tucker,
)
from tests.laws.laws import in_gauge, scaled


def sample(seed: int, dtype: str = "float32") -> Adapter:
    return adapter(
        {
            "unet.down_blocks.0.a": low_rank((20, 16), 3, seed, dtype=dtype, alpha=2.0),
            "unet.down_blocks.1.b": low_rank((12, 30), 5, seed + 1, dtype=dtype),
            "unet.mid_block.c": low_rank((8, 6, 3, 3), 2, seed + 2, dtype=dtype),
        }
    )


def rounded(a: Adapter) -> Adapter:
    return a.with_deltas(
        {
            s: LowRank(
                *(tensor(t.numpy(), "float16") for t in (d.up, d.down)),  # type: ignore[attr-defined]
                d.shape,
                d.scale,  # type: ignore[attr-defined]
            )
            for s, d in a.deltas.items()
        }
    )


def test_moments_are_the_dense_ones() -> None:
    a = adapter(
        {
            "unet.x": low_rank((9, 7), 3, 1, alpha=1.0),
            "unet.c": tucker((6, 4, 3, 3), 3, 2),
            "unet.f": full((5, 4), 3),
            "unet.n": full((5,), 4, "w_norm"),
            "unet.only_a": low_rank((9, 7), 3, 5),
        }
    )
    b = adapter(
        {
            "unet.x": low_rank((9, 7), 5, 6),
            "unet.c": low_rank((6, 4, 3, 3), 2, 7),
            "unet.f": low_rank((5, 4), 1, 8),
            "unet.n": full((5,), 9, "w_norm"),
            "unet.only_b": full((3, 3), 10),
            "unet.also_b": full((2,), 11, "w_norm"),
        }
    )
    found = compare(a, b, threads=1)
    x, y = oracle(a), oracle(b)
    assert list(found.sites) == [s for s in a.deltas if s in b.deltas]
    for s, moments in found.sites.items():
        products = [(x[s] * x[s]).sum(), (y[s] * y[s]).sum(), (x[s] * y[s]).sum()]
        assert (moments.aa, moments.bb, moments.ab) == pytest.approx(products, rel=1e-9)
        assert moments.cosine == pytest.approx(products[2] / math.sqrt(products[0] * products[1]))
        gap = np.linalg.norm(x[s] - y[s]) / max(np.linalg.norm(x[s]), np.linalg.norm(y[s]))
        assert moments.distance == pytest.approx(gap)
        fit = np.linalg.lstsq(x[s].reshape(-1, 1), y[s].reshape(-1), rcond=None)[0]
        assert moments.fit == pytest.approx(fit[0])
    assert found.only_a == ("unet.only_a",)
    assert found.only_b == ("unet.only_b", "unet.also_b")
    assert found.total.aa == pytest.approx(sum((v**2).sum() for v in x.values()))
    assert found.total.bb == pytest.approx(sum((v**2).sum() for v in y.values()))
    assert found.total.ab == pytest.approx(found.shared.ab)


def test_threads_do_not_matter() -> None:
    a, b = sample(1), sample(2)
    assert compare(a, b, threads=1).sites == compare(a, b, threads=3).sites


def test_words() -> None:
    a, b = sample(1), sample(50)
    third, _ = mix([(a, Weight(1.0)), (b, Weight(1.0))], threads=1)
    close, _ = mix([(a, Weight(1.0)), (b, Weight(0.2))], threads=1)
    for other, words in {
        "itself": (a, "The two change the weights in the same way."),
        "regauged": (in_gauge(a, 3, 100.0), "The two change the weights in the same way."),
        "rounded": (rounded(a), "The two are the same up to rounding."),
        "scaled": (scaled(a, 0.7), "B is A times 0.7."),
        "close": (close, "B is close to A times 1"),
        "related": (third, "The two are related"),
        "unrelated": (b, "The two are unrelated"),
        "opposite": (
            scaled(a, -1.0),
            "The two change the weights in opposite directions (cosine -1.00).",
        ),
    }.values():
        assert verdict(compare(a, other, threads=1)).startswith(words)


def test_the_words_agree_with_the_other_order() -> None:
    a, b = sample(1), scaled(sample(1), 2.0)
    assert verdict(compare(a, b)) == "B is A times 2."
    assert verdict(compare(b, a)) == "B is A times 0.5."


def test_modules_on_one_side_are_told() -> None:
    a, b = sample(1), sample(1)
    b = b.with_deltas({s: d for s, d in b.deltas.items() if s != site("unet.mid_block.c")})
    said = verdict(compare(a, b))
    assert said.startswith("The two change the weights in the same way. They are compared on 2 ")
    assert "1 are only in A and 0 only in B" in said


def test_adapters_without_common_modules_are_compared() -> None:
    a, b = adapter({"x": low_rank((4, 3), 1)}), adapter({"y": low_rank((4, 3), 1)})
    assert verdict(compare(a, b)) == "The two have no module in common."


def zero() -> LowRank:
    return LowRank(tensor(np.zeros((4, 1))), tensor(np.ones((1, 3))), (4, 3))


def test_zero_adapters() -> None:
    a, z = adapter({"x": low_rank((4, 3), 1)}), adapter({"x": zero()})
    assert verdict(compare(a, z)) == "One of the two changes nothing."
    assert verdict(compare(z, z)) == "Both change nothing."
    # zero where they meet, not elsewhere
    b = adapter({"x": zero(), "y": low_rank((4, 3), 1)})
    said = verdict(compare(a, b))
    assert said.startswith("On the modules in common, one of the two changes nothing.")


def test_modules_that_cannot_be_compared_are_listed() -> None:
    loha = Foreign({"w1a": tensor(np.ones((6, 2)))}, "loha", (4, 3))
    a = adapter({"x": low_rank((4, 3), 1), "y": replacement((4, 3)), "z": loha})
    found = compare(a, a)
    assert found.skipped == ("y", "z")
    only = adapter({"y": replacement((4, 3))})
    assert verdict(compare(only, only)) == "None of the modules in common can be compared."


def test_shapes_must_agree() -> None:
    a, b = adapter({"unet.x": low_rank((4, 3), 1)}), adapter({"unet.x": low_rank((3, 4), 1)})
    with pytest.raises(ShapeError) as caught:
        compare(a, b)
    assert caught.value.module == "unet.x"
    compare(adapter({"unet.x": low_rank((4, 3, 1, 1), 1)}), a)  # 1×1 kernels are no difference


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_values_that_are_not_finite_are_no_equality(bad: float, shared: bool, whole: bool) -> None:
    values, down = np.ones((4, 2)), np.ones((2, 3))
    values[2, 0], down[0, 1] = bad, 0.0
    broken: Delta = LowRank(tensor(values), tensor(down), (4, 3))
    if whole:
        broken = full((4, 2), 1).with_array(values)
    a = adapter({"unet.x": broken, "unet.y": low_rank((4, 3), 1)})
    b = a if shared else adapter({"unet.y": low_rank((4, 3), 1)})
    with pytest.raises(NumericsError) as caught:
        compare(a, b)
    assert caught.value.module == "unet.x"


def test_moments_of_nothing() -> None:
    nothing = Moments(0.0, 0.0, 0.0)
    assert (nothing.cosine, nothing.distance, nothing.fit) == (None, 0.0, None)
    assert Moments(1.0, 1.0, 1.0 + 1e-15).cosine == 1.0


def test_blocks() -> None:
    found = compare(sample(1), sample(2)).blocks()
    assert list(found) == ["unet.down_blocks.0", "unet.down_blocks.1", "unet.mid_block"]
    names = {
        "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_q": "unet.up_blocks.1",
        "text_encoder.text_model.encoder.layers.3.mlp.fc1": "text_encoder.layers.3",
        "transformer.transformer_blocks.7.attn.to_q": "transformer.transformer_blocks.7",
        "unet.conv_in": "unet.conv_in",
        "opaque": "opaque",
    }
    assert {name: block_of(site(name)) for name in names} == names
