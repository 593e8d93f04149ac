from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter import Adapter, LowRank, Scale
from loramerge.adapter.kinds.oft_diag import Foreign
from loramerge.algebra.combine import combine
from loramerge.algebra.mix import mix
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.terms import Term
from loramerge.algebra.weights import Weight
from loramerge.errors import (
    AdapterError,
    FamilyError,
    NumericsError,
    ShapeError,
    UnsupportedKind,
    UsageError,
)
from loramerge.events import Warn
from tests.builders.deltas import (
    adapter,
    dense,
    distance,
    full,
    low_rank,
    norm,
    replacement,
    site,
    tensor,
    tucker,
    weighted,
    written,
)


def mixed(*inputs: tuple[Adapter, float], rule: RankRule = RankRule()) -> Adapter:
    return mix([(a, Weight(w)) for a, w in inputs], rule, threads=1)[0]


def assert_exact(*inputs: tuple[Adapter, float]) -> Adapter:
    result = mixed(*inputs)
    scale = sum(abs(w) * norm(dense(a)) for a, w in inputs)
    assert distance(dense(result), weighted(inputs)) <= 1e-12 * scale
    return result


# ---- the sum


def test_different_ranks() -> None:
    a = adapter({"unet.x": low_rank((20, 30), 4, 1, dtype="float64", alpha=2.0)})
    b = adapter({"unet.x": low_rank((20, 30), 7, 2, dtype="float64")})
    (delta,) = assert_exact((a, 0.6), (b, -1.5)).deltas.values()
    assert delta.rank == 11
    assert delta.alpha == 11.0


def test_sites_that_one_lacks() -> None:
    a = adapter({"unet.x": low_rank((9, 8), 2, 1), "unet.y": low_rank((9, 8), 2, 2)})
    b = adapter({"unet.y": low_rank((9, 8), 3, 3), "unet.z": low_rank((7, 8), 1, 4)})
    result = assert_exact((a, 2.0), (b, 0.5))
    assert [s.name for s in result.deltas] == ["unet.x", "unet.y", "unet.z"]
    # sites of one adapter keep its factors; the weight is apart
    kept = result.deltas[site("unet.x")]
    assert isinstance(kept, LowRank)
    assert kept.up is a.deltas[site("unet.x")].stored()["up"]
    assert kept.scale.weight == 2.0


def test_full_with_low_rank_is_full() -> None:
    a = adapter({"unet.x": full((9, 8), 1), "unet.c": full((6, 4, 3, 3), 2)})
    b = adapter({"unet.x": low_rank((9, 8), 2, 3), "unet.c": low_rank((6, 4, 3, 3), 2, 4)})
    for order in ([(a, 0.5), (b, -2.0)], [(b, -2.0), (a, 0.5)]):
        result = assert_exact(*order)
        assert result.kinds() == {"full": 2}
        assert result.deltas[site("unet.c")].shape == (6, 4, 3, 3)


def test_full_with_low_rank_and_a_rank_is_low_rank() -> None:
    a = adapter({"unet.x": full((9, 8), 1)})
    b = adapter({"unet.x": low_rank((9, 8), 2, 3)})
    (delta,) = mixed((a, 0.5), (b, -2.0), rule=RankRule(rank=3)).deltas.values()
    (value,) = weighted([(a, 0.5), (b, -2.0)]).values()
    s = np.linalg.svd(value, compute_uv=False)
    assert delta.rank == 3
    assert np.linalg.norm(delta.dense() - value) == pytest.approx(np.linalg.norm(s[3:]))


def test_tucker_with_lora() -> None:
    a = adapter({"unet.c": tucker((6, 4, 3, 3), 3, 1, alpha=2.0)})
    b = adapter({"unet.c": low_rank((6, 4, 3, 3), 2, 2, dtype="float64")})
    (delta,) = assert_exact((a, 0.5), (b, 1.0)).deltas.values()
    assert (delta.kind, delta.rank, delta.shape) == ("lora", 5, (6, 4, 3, 3))


def test_a_1x1_convolution_with_a_linear_layer() -> None:
    a = adapter({"unet.x": low_rank((6, 4, 1, 1), 2, 1)})
    b = adapter({"unet.x": low_rank((6, 4), 2, 2)})
    assert_exact((a, 0.5), (b, 1.0))
    assert_exact((b, 0.5), (a, 1.0))


def test_ranks_above_the_smaller_side() -> None:
    a = adapter({"unet.x": low_rank((5, 40), 4, 1)})
    b = adapter({"unet.x": low_rank((5, 40), 9, 2)})
    (delta,) = assert_exact((a, 1.0), (b, 1.0)).deltas.values()
    assert delta.rank == 5


def test_vectors_are_added() -> None:
    a = adapter({"unet.n": full((7,), 1, "w_norm"), "unet.n:bias": full((7,), 2, "b_norm")})
    b = adapter({"unet.n": full((7,), 3, "w_norm")})
    result = assert_exact((a, 0.5), (b, -0.25))
    assert result.kinds() == {"norm": 2}
    assert {s.name for s in result.deltas} == {"unet.n", "unet.n.bias"}


def test_weights_per_component() -> None:
    names = ("unet.x", "text_encoder.x", "text_encoder_2.x")
    a, b = (adapter({n: low_rank((6, 5), 2, s + i) for i, n in enumerate(names)}) for s in (1, 9))
    w = Weight(0.5, {"text_encoder": 0.0, "text_encoder_2": -2.0})
    result, _ = mix([(a, w), (b, Weight(1.0))], threads=1)
    expected = weighted([(b, 1.0)])
    for name, value in weighted([(a, 1.0)]).items():
        expected[name] = expected[name] + w.of(name) * value
    assert distance(dense(result), expected) <= 1e-12 * norm(expected)


def test_three_adapters_of_one_direction_have_its_rank() -> None:
    a = adapter({"unet.x": low_rank((12, 10), 3, 1, dtype="float64")})
    result = assert_exact((a, 1.0), (a, 0.5), (a, -0.25))
    assert result.ranks() == {3: 1}


def test_modules_that_cancel_are_left_out_and_counted() -> None:
    a = adapter({"unet.x": low_rank((12, 10), 3, 1)})
    b = adapter({"unet.y": low_rank((12, 10), 3, 1)})
    result, combined = mix([(a, Weight(1.0)), (a, Weight(-1.0)), (b, Weight(1.0))], threads=1)
    # what float64 leaves of it is noise
    assert combined.left_out == ["unet.x"]
    assert [s.name for s in result.deltas] == ["unet.y"]
    assert not combined.lossy


def test_zero_deltas() -> None:
    zero = LowRank(tensor(np.zeros((6, 2))), tensor(np.ones((2, 5))), (6, 5))
    a = adapter({"unet.x": zero, "unet.y": low_rank((6, 5), 2, 1)})
    result, combined = mix([(a, Weight()), (a, Weight())], threads=1)
    assert combined.left_out == ["unet.x"]
    assert list(result.deltas) == [site("unet.y")]


def test_one_adapter_keeps_everything() -> None:
    a = adapter({"unet.x": low_rank((6, 5), 2, 1, alpha=1.0), "unet.n": full((4,), 2, "w_norm")})
    result, combined = mix([(a, Weight(1.0))], threads=1)
    assert result.deltas == a.deltas
    assert not combined.lossy
    assert combined.relative_error == 0.0
    assert combined.norm_kept == 1.0


def test_small_directions_survive_float16(tmp_path: Path) -> None:
    # √σ on both sides: σ = 1e-6 would flush to zero beside a factor of norm 1 in float16
    from tests.builders.deltas import of_spectrum

    a = adapter({"unet.x": of_spectrum((20, 20), [1.0, 1e-6], 1)})
    b = adapter({"unet.x": of_spectrum((20, 20), [1.0, 1e-6], 2)})
    result = mixed((a, 1.0), (b, 1.0))
    (delta,) = result.deltas.values()
    stored = delta.encoded("F16", alpha=True)
    up, down = (stored[role].numpy().astype("float64") for role in ("up", "down"))
    assert np.linalg.svd(up @ down, compute_uv=False)[2:4] == pytest.approx([1e-6] * 2, rel=0.2)


# ---- what is refused


def test_different_shapes_name_the_files() -> None:
    a = adapter({"unet.x": low_rank((6, 5), 2, 1)}, path="a.safetensors")
    b = adapter({"unet.x": low_rank((6, 7), 2, 1)}, path="b.safetensors")
    with pytest.raises(ShapeError) as caught:
        mixed((a, 1.0), (b, 1.0))
    assert caught.value.file == "a.safetensors and b.safetensors"
    assert caught.value.module == "unet.x"
    assert "[6, 5], [6, 7]" in str(caught.value)


def test_different_families_name_the_files() -> None:
    a = adapter({"unet.x": low_rank((6, 5), 2)}, path="a.safetensors", families=["sd15"])
    b = adapter({"unet.x": low_rank((6, 5), 2)}, path="b.safetensors", families=["sdxl"])
    with pytest.raises(FamilyError) as caught:
        mixed((a, 1.0), (b, 1.0))
    assert caught.value.file == "a.safetensors and b.safetensors"
    assert caught.value.found == "sd15 and sdxl"


def test_a_known_family_with_an_unknown() -> None:
    a = adapter({"unet.x": low_rank((6, 5), 2)}, path="a", families=["sd15"])
    b = adapter({"x": low_rank((6, 5), 2)}, path="b")
    with pytest.raises(FamilyError, match="known family"):
        mixed((a, 1.0), (b, 1.0))


def test_ambiguous_families_narrow() -> None:
    a = adapter({"unet.x": low_rank((6, 5), 2)}, families=["sd15", "sd21"])
    b = adapter({"unet.x": low_rank((6, 5), 2)}, families=["sd21"])
    assert mixed((a, 1.0), (b, 1.0)).info.detection.name == "sd21"


def test_unknown_families_without_a_common_module_warn() -> None:
    events: list[object] = []
    a, b = adapter({"x": low_rank((6, 5), 2)}), adapter({"y": low_rank((6, 5), 2)})
    mix([(a, Weight()), (b, Weight())], threads=1, notify=events.append)
    assert any(isinstance(event, Warn) and "no module in common" in event.text for event in events)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["shared", "alone", "with full", "vector", "dense", "cut"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_that_are_not_finite_name_the_module(bad: float, place: str, dtype: str) -> None:
    values, down = np.ones((6, 2)), np.ones((2, 5))
    values[3, 1], down[1, 2] = bad, 0.0
    broken = LowRank(tensor(values, dtype), tensor(down, dtype), (6, 5))
    fine = low_rank((6, 5), 2, 1)
    other = adapter({"unet.x": fine}) if place == "shared" else adapter({"unet.fine": fine})
    if place == "with full":
        other = adapter({"unet.x": full((6, 5), 1)})
    rule = RankRule(rank=1) if place == "cut" else RankRule()
    if place == "vector":
        broken = full((6,), 1, "w_norm").with_array(values[:, 1])  # type: ignore[assignment]
    if place == "dense":
        broken = full((6, 2), 1).with_array(values)  # type: ignore[assignment]
    with pytest.raises(NumericsError) as caught:
        mixed((adapter({"unet.x": broken}), 1.0), (other, 1.0), rule=rule)
    assert caught.value.module == "unet.x"


def test_huge_finite_values_are_fine() -> None:
    values = np.full((300, 2), 6e4)
    huge = LowRank(tensor(values, "float16"), tensor(np.ones((2, 5)), "float16"), (300, 5))
    a = adapter({"unet.x": huge})
    assert mixed((a, 1.0)).deltas
    assert_exact((a, 0.5), (a, 0.5))


def test_empty_mixes_and_zero_weights_are_refused() -> None:
    with pytest.raises(UsageError, match="at least one"):
        mix([])
    with pytest.raises(UsageError, match="all weights are 0"):
        mixed((adapter({"unet.x": low_rank((6, 5), 2)}), 0.0))


def test_weights_must_be_finite() -> None:
    with pytest.raises(UsageError):
        Weight(math.nan)
    with pytest.raises(UsageError):
        Weight(1.0, {"unet": math.inf})


def test_kinds_that_cannot_be_computed_with_name_file_and_module() -> None:
    loha = Foreign({"w1a": tensor(np.ones((6, 2)))}, "loha", (6, 5))
    a = adapter({"unet.x": loha}, path="a.safetensors")
    for inputs in ([(a, 0.5)], [(a, 1.0), (a, 1.0)]):
        with pytest.raises(UnsupportedKind) as caught:
            mixed(*inputs)
        assert caught.value.module == "unet.x"
    with pytest.raises(UnsupportedKind) as caught:
        mixed((a, 0.5))
    assert caught.value.file == "a.safetensors"
    assert mixed((a, 1.0)).kinds() == {"loha": 1}


# ---- replacements and embeddings


def test_equal_replacements_stay() -> None:
    a, b = (adapter({"unet.x": replacement((4, 3), 1)}) for _ in range(2))
    (delta,) = mixed((a, 1.0), (b, 1.0)).deltas.values()
    assert delta.kind == "set"


@pytest.mark.parametrize(
    ("other", "weight"),
    [(replacement((4, 3), 2), 1.0), (replacement((4, 3), 1), 0.5), (low_rank((4, 3), 1, 1), 1.0)],
    ids=["values", "weight", "kind"],
)
def test_other_replacements_are_refused(other: object, weight: float) -> None:
    a = adapter({"unet.x": replacement((4, 3), 1)})
    b = adapter({"unet.x": other})  # type: ignore[dict-item]
    with pytest.raises(AdapterError, match="replacement") as caught:
        mixed((a, 1.0), (b, weight))
    assert caught.value.module == "unet.x"


def with_embedding(seed: int, path: str, key: str = "<zuzu>") -> Adapter:
    a = adapter({"unet.x": low_rank((6, 5), 2, seed)}, path=path)
    return replace(a, embeddings={key: tensor(np.full((1, 4), float(seed)))})


def test_embeddings() -> None:
    a, b = with_embedding(1, "a"), with_embedding(2, "b")
    c = with_embedding(3, "c", "<other>")
    inputs = [(a, Weight()), (b, Weight())]
    with pytest.raises(AdapterError) as caught:
        mix(inputs)
    assert caught.value.file == "a and b"
    assert caught.value.module == "<zuzu>"
    first, _ = mix(inputs, embeddings="first")
    assert first.embeddings["<zuzu>"].numpy()[0, 0] == 1.0
    none, _ = mix(inputs, embeddings="none")
    assert none.embeddings == {}
    union, _ = mix([(a, Weight()), (c, Weight()), (a, Weight())])
    assert list(union.embeddings) == ["<zuzu>", "<other>"]


# ---- frame and determinism


def test_dtype_is_the_widest_of_the_inputs() -> None:
    half, brain, single = (
        adapter({"unet.x": low_rank((6, 5), 2, dtype=d)})
        for d in ("float16", "bfloat16", "float32")
    )
    assert mixed((half, 1.0), (half, 1.0)).dtype == "F16"
    assert mixed((half, 1.0), (brain, 1.0)).dtype == "F32"
    assert mixed((brain, 1.0), (single, 1.0)).dtype == "F32"


def test_metadata_is_what_the_inputs_agree_on() -> None:
    a, b = (adapter({"unet.x": low_rank((6, 5), 2)}) for _ in range(2))
    a.info.metadata.update({"same": "1", "other": "1", "sshs_model_hash": "x"})
    b.info.metadata.update({"same": "1", "other": "2", "sshs_model_hash": "x"})
    assert mixed((a, 1.0), (b, 1.0)).info.metadata == {"same": "1"}


def big(seed: int) -> Adapter:
    shapes: dict[str, tuple[int, ...]] = {f"unet.l{i}": (40 + 3 * i, 60 - i) for i in range(12)} | {
        f"unet.c{i}": (12, 8 + i, 3, 3) for i in range(6)
    }
    return adapter(
        {
            name: low_rank(shape, 3 + i % 5, seed + i)
            for i, (name, shape) in enumerate(shapes.items())
        }
    )


@pytest.mark.parametrize("rule", [RankRule(), RankRule(rank=4), RankRule(max_error=0.3)])
def test_the_bytes_do_not_depend_on_threads(tmp_path: Path, rule: RankRule) -> None:
    inputs = [(big(1), Weight(0.7)), (big(100), Weight(-0.4))]
    results = {
        written(mix(inputs, rule, threads=threads)[0], tmp_path / f"{run}-{threads}.safetensors")
        for threads in (1, 2, 4)
        for run in range(2)
    }
    assert len(results) == 1


def test_the_sign_of_each_direction_is_fixed() -> None:
    (up, _), (flipped, _) = (
        mixed((big(1), w), (big(100), w)).deltas[site("unet.l0")].factors("float64")
        for w in (1.0, -1.0)
    )
    assert (np.take_along_axis(up, np.abs(up).argmax(0)[None], 0) > 0).all()
    # −ΔW has the same left vectors; its sign goes to the right
    assert np.allclose(up, flipped, atol=1e-9)


def test_the_scale_of_inputs_is_not_rounded() -> None:
    delta = low_rank((6, 5), 2, 1, dtype="float64")
    a = adapter({"unet.x": replace(delta, scale=Scale(0.1, root=True))})
    assert_exact((a, 1 / 3), (a, 1.0))


def test_reported_ranks() -> None:
    a = adapter({"unet.x": low_rank((20, 20), 4, 1), "unet.n": full((3,), 1, "w_norm")})
    b = adapter({"unet.x": low_rank((20, 20), 3, 2)})
    combined = mix([(a, Weight()), (b, Weight())], RankRule(rank=5), threads=1)[1]
    x, n = combined.outcomes
    assert (x.rank_before, x.rank_after) == (7, 5)
    assert (n.rank_before, n.rank_after) == (None, None)
    assert combined.lossy


def test_combine_names_the_site_of_an_error() -> None:
    with pytest.raises(ShapeError) as caught:
        combine(
            {site("unet.x"): [Term(low_rank((4, 3), 1)), Term(low_rank((3, 4), 1))]}, RankRule()
        )
    assert caught.value.module == "unet.x"
