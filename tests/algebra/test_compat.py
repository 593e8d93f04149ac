"""What other tools' merges mean: their formulas, their refusals, and how far they are from the sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter import Adapter, LowRank, Scale
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.algebra.compat import COMPATS, mix_like
from loramerge.algebra.mix import mix
from loramerge.algebra.weights import Weight
from loramerge.errors import (
    AdapterError,
    FamilyError,
    NumericsError,
    ShapeError,
    UnsupportedKind,
    UsageError,
)
from loramerge.events import Progress
from tests.builders.deltas import (
    Array,
    Dense,
    adapter,
    dense,
    distance,
    full,
    low_rank,
    norm,
    oracle,
    site,
    tensor,
    tucker,
    weighted,
)
from tests.builders.samples import read_safetensors

SHAPES = {
    "unet.linear": (20, 30),
    "unet.conv": (12, 8, 3, 3),
    "unet.pointwise": (12, 8, 1, 1),
    "text_encoder.linear": (16, 16),
}


def made(
    seed: int, *, rank: int = 4, alpha: float | None = None, without: str = "", path: str = ""
) -> Adapter:
    """A float64 LoRA with a linear layer, convolutions and a text encoder, perhaps without one."""
    deltas = {
        name: low_rank(shape, rank, 10 * seed + i, dtype="float64", alpha=alpha)
        for i, (name, shape) in enumerate(SHAPES.items())
        if name != without
    }
    return adapter(deltas, path=path or f"lora{seed}.safetensors")


def like(tool: str, *inputs: tuple[Adapter, float]) -> Adapter:
    return mix_like(tool, [(a, Weight(w)) for a, w in inputs])


def parts(a: Adapter, name: str) -> tuple[Array, Array, float] | None:
    """Up `(out, r)`, down `(r, ·)` and alpha of a module as the file has them."""
    delta = a.deltas.get(site(name))
    if delta is None:
        return None
    assert isinstance(delta, LowRank)
    up, down = (t.numpy().astype("float64") for t in (delta.up, delta.down))
    rank = up.shape[1]
    alpha = float(rank) if delta.scale.alpha is None else delta.scale.alpha
    return up.reshape(-1, rank), down.reshape(rank, -1), alpha


Inputs = Sequence[tuple[Adapter, float]]


def by_definition(tool: str, inputs: Inputs) -> Dense:
    """What the tools' own code computes, written out once more in float64."""
    found: Dense = {}
    for name in SHAPES:
        have = [(p, w) for one, w in inputs if (p := parts(one, name)) is not None]
        (_, _, first), _ = have[0]
        rank = have[0][0][0].shape[1]
        if tool == "peft-linear":
            scales = [w * alpha / up.shape[1] for (up, _, alpha), w in have]
            b, a = np.zeros_like(have[0][0][0]), np.zeros_like(have[0][0][1])
            for ((up, down, _), _), s in zip(have, scales, strict=True):
                b += math.sqrt(abs(s)) * up
                a += (1 if s >= 0 else -1) * math.sqrt(abs(s)) * down
            found[site(name)] = b @ a
            continue
        factors = [math.sqrt(alpha / first) * w for (_, _, alpha), w in have]
        ups = [abs(f) * up for ((up, _, _), _), f in zip(have, factors, strict=True)]
        downs = [f * down for ((_, down, _), _), f in zip(have, factors, strict=True)]
        if tool == "kohya":
            found[site(name)] = first / rank * np.sum(ups, axis=0) @ np.sum(downs, axis=0)
        else:
            joined = np.concatenate(ups, axis=1), np.concatenate(downs)
            found[site(name)] = first / joined[0].shape[1] * joined[0] @ joined[1]
    return found


CASES: dict[str, Inputs] = {
    "one": [(made(1, alpha=2.0), 0.7)],
    "two at 1": [(made(1), 1.0), (made(2), 1.0)],
    "alphas differ": [(made(1, alpha=1.0), 0.7), (made(2, alpha=3.5), 0.4)],
    "an alpha is absent": [(made(1), 0.7), (made(2, alpha=8.0), 0.4)],
    "a negative ratio": [(made(1, alpha=2.0), 0.7), (made(2, alpha=1.0), -0.4)],
    "three, of modules that some lack": [
        (made(1, alpha=2.0, without="unet.conv"), 0.7),
        (made(2, alpha=1.0, without="text_encoder.linear"), -0.4),
        (made(3, without="unet.linear"), 1.3),
    ],
    "a first ratio of 0": [(made(1, alpha=2.0), 0.0), (made(2, alpha=1.0), 0.5)],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tool", COMPATS)
def test_the_result_means_what_the_tools_file_means(tool: str, case: str) -> None:
    inputs = CASES[case]
    expected = by_definition(tool, inputs)
    result = like(tool, *inputs)
    assert distance(dense(result), expected) <= 1e-12 * norm(expected)
    assert distance(oracle(result), expected) <= 1e-12 * norm(expected)


@pytest.mark.parametrize("tool", COMPATS)
def test_the_result_is_not_the_exact_sum(tool: str) -> None:
    inputs = [(made(1, alpha=2.0), 0.7), (made(2, alpha=1.0), 0.4)]
    exact = weighted(inputs)
    assert distance(dense(like(tool, *inputs)), exact) > 0.3 * norm(exact)
    assert distance(dense(mix([(a, Weight(w)) for a, w in inputs])[0]), exact) < 1e-12 * norm(exact)


@pytest.mark.parametrize(
    ("tool", "ratio", "strength"),
    [
        ("kohya", 0.5, 0.25),
        ("kohya", -0.5, -0.25),
        ("kohya", 1.0, 1.0),
        ("kohya-concat", 0.5, 0.25),
        ("kohya-concat", -0.5, -0.25),
        ("peft-linear", 0.5, 0.5),
        ("peft-linear", -0.5, -0.5),
    ],
)
def test_one_adapter(tool: str, ratio: float, strength: float) -> None:
    a = made(1, alpha=3.0)
    expected = weighted([(a, strength)])
    assert distance(dense(like(tool, (a, ratio))), expected) <= 1e-12 * norm(expected)


def test_two_adapters_joined_by_kohya_act_at_a_half() -> None:
    a, b = made(1), made(2)
    expected = weighted([(a, 0.5), (b, 0.5)])
    assert distance(dense(like("kohya-concat", (a, 1), (b, 1))), expected) <= 1e-12 * norm(expected)


def test_kohya_adds_what_no_adapter_asked_for() -> None:
    a, b = made(1), made(2)
    exact = weighted([(a, 1.0), (b, 1.0)])
    assert distance(dense(like("kohya", (a, 1), (b, 1))), exact) > 0.8 * norm(exact)


def test_only_joining_takes_different_ranks() -> None:
    a, b = made(1, rank=4, alpha=2.0), made(2, rank=7, alpha=3.0)
    inputs = [(a, 0.7), (b, -0.4)]
    result = like("kohya-concat", *inputs)
    expected = by_definition("kohya-concat", inputs)
    assert distance(dense(result), expected) <= 1e-12 * norm(expected)
    assert result.ranks() == {11: 4} and result.alphas() == {2.0: 4}
    for tool in ("kohya", "peft-linear"):
        with pytest.raises(ShapeError) as caught:
            like(tool, *inputs)
        text = str(caught.value)
        assert "different ranks" in text and "lora1.safetensors and lora2.safetensors" in text
        assert "expected: rank 4" in text and "found: rank 7" in text and "exact mix" in text


def test_ranks_that_differ_at_one_module_only() -> None:
    a = adapter({"unet.x": low_rank((9, 9), 2, 1), "unet.y": low_rank((9, 9), 4, 2)})
    b = adapter({"unet.x": low_rank((9, 9), 4, 3), "unet.y": low_rank((9, 9), 2, 4)})
    for tool in ("kohya", "peft-linear"):
        with pytest.raises(ShapeError) as caught:
            like(tool, (a, 1.0), (b, 0.0))  # ratio 0 is no excuse there
        assert caught.value.module == "unet.x"


def test_shapes_that_differ_are_refused() -> None:
    a = adapter({"unet.x": low_rank((9, 8), 2, 1)})
    b = adapter({"unet.x": low_rank((9, 7), 2, 2)})
    flat, kernel = low_rank((9, 8), 2, 1), low_rank((9, 8, 1, 1), 2, 2)
    for tool in COMPATS:
        with pytest.raises(ShapeError, match="differ in shape"):
            like(tool, (a, 1.0), (b, 1.0))
        with pytest.raises(ShapeError, match="1×1 kernels"):
            like(tool, (adapter({"unet.x": flat}), 1.0), (adapter({"unet.x": kernel}), 1.0))


@pytest.mark.parametrize("tool", COMPATS)
@pytest.mark.parametrize("delta", [full((9, 9)), tucker((9, 8, 3, 3), 2)])
def test_other_kinds_are_refused(tool: str, delta: LowRank) -> None:
    a = adapter({"unet.x": low_rank((9, 9), 2), "unet.y": delta}, path="a.safetensors")
    with pytest.raises(UnsupportedKind) as caught:
        like(tool, (a, 1.0))
    text = str(caught.value)
    assert "a.safetensors: unet.y" in text and f"found: {delta.kind}" in text


@pytest.mark.parametrize("tool", ["kohya", "kohya-concat"])
def test_alphas_without_a_root_are_refused(tool: str) -> None:
    zero, minus, plus = made(1, alpha=0.0), made(2, alpha=-1.0), made(3, alpha=1.0)
    for inputs in ([(zero, 1.0)], [(plus, 1.0), (minus, 1.0)]):
        with pytest.raises(AdapterError, match="divides by the first adapter's alpha"):
            like(tool, *inputs)
    # the script computes these: the quotients are positive, and a later alpha may be 0
    for good in ([(minus, 0.5)], [(plus, 1.0), (zero, 1.0)]):
        expected = by_definition(tool, good)
        assert distance(dense(like(tool, *good)), expected) <= 1e-12 * norm(expected)


def test_a_weight_is_the_ratio_of_each_site() -> None:
    a = made(1)
    weight = Weight(0.5, {"text_encoder": 0.0}, match=(("*conv", -2.0),))
    result = mix_like("kohya", [(a, weight)])
    before = weighted([(a, 1.0)])
    after = dense(result)
    assert site("text_encoder.linear") not in after
    np.testing.assert_allclose(after[site("unet.linear")], 0.25 * before[site("unet.linear")])
    np.testing.assert_allclose(after[site("unet.conv")], -4 * before[site("unet.conv")])


def test_zero_weights_and_no_adapters_are_refused() -> None:
    with pytest.raises(UsageError, match="all weights are 0"):
        like("kohya", (made(1), 0.0))
    with pytest.raises(UsageError, match="at least one"):
        like("kohya")


def test_an_unknown_tool_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        like("kohya-cat", (made(1), 1.0))
    assert "peft-linear" in str(caught.value) and "did you mean kohya-concat?" in str(caught.value)


def test_families_and_embeddings_are_those_of_the_exact_mix() -> None:
    a = adapter({"unet.x": low_rank((9, 9), 2)}, families=["sd15"])
    b = adapter({"unet.x": low_rank((9, 9), 2)}, families=["sdxl"])
    with pytest.raises(FamilyError):
        like("kohya", (a, 1.0), (b, 1.0))
    c = replace(a, embeddings={"<s>": tensor(np.zeros(3))})
    a = replace(a, embeddings={"<s>": tensor(np.ones(3))})
    with pytest.raises(AdapterError, match="different embeddings"):
        like("kohya", (a, 1.0), (c, 1.0))
    first = mix_like("kohya", [(a, Weight()), (c, Weight())], embeddings="first")
    assert first.embeddings == a.embeddings and first.family is a.family


@pytest.mark.parametrize("tool", COMPATS)
def test_nonfinite_inputs_are_refused(tool: str) -> None:
    up = np.ones((9, 2))
    up[3, 1] = np.nan
    broken = LowRank(tensor(up), tensor(np.ones((2, 9))), (9, 9))
    with pytest.raises(NumericsError) as caught:
        like(tool, (adapter({"unet.x": broken}, path="a.safetensors"), 1.0))
    assert caught.value.file == "a.safetensors" and caught.value.module == "unet.x"


def test_progress_is_told() -> None:
    told: list[object] = []
    mix_like("kohya", [(made(1), Weight())], notify=told.append)
    assert [e for e in told if isinstance(e, Progress)][-1] == Progress("mixing", 4, 4)


# ---- files


MODULES = (
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
    "text_encoder.text_model.encoder.layers.3.self_attn.q_proj",
)


def on_disk(folder: Path, seed: int, alpha: float | None, modules: Sequence[str]) -> Path:
    shapes = {MODULES[0]: (320, 320), MODULES[1]: (1280, 768), MODULES[2]: (768, 768)}
    deltas = {
        name: low_rank(shapes[name], 2, seed + i, alpha=alpha) for i, name in enumerate(modules)
    }
    path = folder / f"in{seed}.safetensors"
    save(adapter(deltas, families=["sd15"]), path, to="kohya")
    return path


def merged_by_keys(paths: Sequence[Path], ratios: Sequence[float]) -> dict[str, Array]:
    """kohya's merge of files, key by key in float32, for the keys that kohya writes."""
    alphas: dict[str, float] = {}
    merged: dict[str, Array] = {}
    for path, ratio in zip(paths, ratios, strict=True):
        arrays, _ = read_safetensors(path)
        for key in arrays:
            stem, _, role = key.partition(".")
            if role == "alpha":
                continue
            rank = arrays[f"{stem}.lora_down.weight"].shape[0]
            own = float(arrays.get(f"{stem}.alpha", np.array(rank)))
            c = ratio * math.sqrt(own / alphas.setdefault(stem, own))
            term = arrays[key] * np.float32(abs(c) if role.startswith("lora_up") else c)
            merged[key] = merged[key] + term if key in merged else term
    return merged | {f"{stem}.alpha": np.array(alpha) for stem, alpha in alphas.items()}


def test_the_file_holds_the_tools_own_tensors(tmp_path: Path) -> None:
    paths = [
        on_disk(tmp_path, 1, 1.5, MODULES),
        on_disk(tmp_path, 5, None, MODULES[:2]),
        on_disk(tmp_path, 9, 4.0, MODULES[1:]),
    ]
    ratios = [0.7, -0.4, 1.1]
    expected = merged_by_keys(paths, ratios)
    result = like("kohya", *((load(p), r) for p, r in zip(paths, ratios, strict=True)))
    save(result, tmp_path / "out.safetensors", to="kohya")
    arrays, _ = read_safetensors(tmp_path / "out.safetensors")
    assert arrays.keys() == expected.keys()
    for key, array in arrays.items():
        np.testing.assert_allclose(array, expected[key], rtol=0, atol=2e-6 * np.abs(array).max())


@pytest.mark.parametrize("dialect", ["kohya", "diffusers", "diffusers-legacy", "peft"])
@pytest.mark.parametrize("tool", COMPATS)
def test_every_dialect_holds_the_result(tool: str, dialect: str, tmp_path: Path) -> None:
    a = load(on_disk(tmp_path, 1, 1.5, MODULES))
    b = load(on_disk(tmp_path, 5, 3.0, MODULES))
    result = like(tool, (a, 0.7), (b, -0.4))
    out = tmp_path / ("out" if dialect == "peft" else "out.safetensors")
    save(result, out, to=dialect)
    expected = dense(result)
    assert distance(dense(load(out)), expected) <= 1e-6 * norm(expected)


@pytest.mark.parametrize("tool", COMPATS)
@pytest.mark.parametrize("scale", [Scale(3.0, root=True), Scale(3.0, weight=-0.5)])
def test_a_scaled_adapter_counts_as_its_file(tool: str, scale: Scale, tmp_path: Path) -> None:
    """Factors are read as a writer writes them: where a sign or an alpha stands matters here."""
    delta = replace(low_rank((320, 320), 2, 1), scale=scale)
    a = adapter({MODULES[0]: delta}, families=["sd15"])
    save(a, tmp_path / "a.safetensors", to="kohya")
    b = load(on_disk(tmp_path, 5, 1.5, MODULES[:1]))
    expected = dense(like(tool, (b, 0.4), (load(tmp_path / "a.safetensors"), -0.7)))
    found = dense(like(tool, (b, 0.4), (a, -0.7)))
    assert distance(found, expected) <= 1e-6 * norm(expected)
