"""The three ways an operator is executed, against dense float64 oracles; and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from annotated_types import Interval

import loramerge as lm
from loramerge.adapter import Adapter, Full, LowRank
from loramerge.algebra import spaces
from loramerge.algebra.method import Method
from loramerge.algebra.mix import mix
from loramerge.algebra.operator import Operator
from loramerge.algebra.operators import OPERATORS, find_operator, load_file, register
from loramerge.algebra.outcome import Combined
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.views import Rows
from loramerge.algebra.weights import Weight
from loramerge.errors import LoramergeError, MissingFile, NumericsError, UsageError
from tests.builders.deltas import adapter, dense, distance, full, low_rank, norm, of_spectrum, site

MADE_UP = Path(__file__).resolve().parents[1] / "made_up_operators"
Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    with OPERATORS.adding():
        yield


def test_a_file_of_the_package_is_registered_by_being_there() -> None:
    """Its decorator must not walk over the shipped ones: these are being imported."""

    def mine(terms: Any, parameters: Any) -> Any:
        """Add."""
        return terms.weights

    mine.__module__ = "loramerge.algebra.operators.mine"
    assert lm.operator(space="scalars")(mine).name == "mine"
    assert "mine" not in OPERATORS


def made_up(name: str, **values: Any) -> Method:
    (operator,) = load_file(MADE_UP / f"{name}.py")
    return Method.of(operator, values)


def merge(
    inputs: Sequence[tuple[Adapter, float]], method: Method, rule: RankRule = RankRule(), **how: Any
) -> tuple[Adapter, Combined]:
    weighted = [(a, Weight(w)) for a, w in inputs]
    return mix(weighted, rule, method=method, **({"threads": 1} | how))


def inputs_of(*seeds: int, shape: tuple[int, ...] = (20, 30)) -> list[tuple[Adapter, float]]:
    found = [
        adapter({"unet.x": low_rank(shape, 2 + i, seed, dtype="float64", alpha=3.0)})
        for i, seed in enumerate(seeds)
    ]
    return list(zip(found, (0.7, -1.3, 0.4), strict=False))


def matrices(inputs: Sequence[tuple[Adapter, float]]) -> list[tuple[Array, float]]:
    return [(dense(a)[site("unet.x")], w) for a, w in inputs]


def ties_oracle(terms: Sequence[tuple[Array, float]], density: float) -> Array:
    """TIES by its definition, entry by entry."""
    kept = []
    for values, _ in terms:
        count = int(density * values.size)
        smallest = np.sort(np.abs(values).reshape(-1))[-count]
        kept.append(np.where(np.abs(values) >= smallest, values, 0.0))
    result = np.zeros(kept[0].shape)
    for place in np.ndindex(result.shape):
        entries = [
            (w * k[place], abs(w)) for k, (_, w) in zip(kept, terms, strict=True) if k[place]
        ]
        sign = math.copysign(1.0, sum(e for e, _ in entries))
        agree = [(e, w) for e, w in entries if e * sign > 0]
        if agree:
            result[place] = sum(e for e, _ in agree) / sum(w for _, w in agree)
    return result


def best(matrix: Array, rank: int) -> Array:
    left, sizes, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * sizes[:rank]) @ right[:rank]


# ---- elements


def test_ties_is_its_definition_at_the_largest_rank_of_the_inputs() -> None:
    inputs = inputs_of(1, 2, 3)
    result, combined = merge(inputs, made_up("ties", kept_share=0.3))
    expected = ties_oracle(matrices(inputs), 0.3)
    (delta,) = result.deltas.values()
    assert delta.rank == 4
    assert np.linalg.norm(dense(result)[site("unet.x")] - best(expected, 4)) <= 1e-12
    lost = np.linalg.norm(expected - best(expected, 4)) / np.linalg.norm(expected)
    assert combined.lossy and combined.relative_error == pytest.approx(lost, rel=1e-9)


@pytest.mark.parametrize(
    ("rule", "rank"),
    [(RankRule(rank=9), 9), (RankRule(rank=2), 2), (RankRule(energy=1.0), 20)],
)
def test_a_criterion_takes_the_place_of_the_largest_rank(rule: RankRule, rank: int) -> None:
    inputs = inputs_of(1, 2)
    result, _ = merge(inputs, made_up("ties", kept_share=0.7), rule)
    expected = best(ties_oracle(matrices(inputs), 0.7), rank)
    (delta,) = result.deltas.values()
    assert delta.rank == rank
    assert np.linalg.norm(dense(result)[site("unet.x")] - expected) <= 1e-12


def test_max_error_chooses_the_rank_of_a_dense_result() -> None:
    inputs = inputs_of(1, 2)
    result, combined = merge(inputs, made_up("ties"), RankRule(max_error=0.1))
    expected = ties_oracle(matrices(inputs), 0.2)
    (delta,) = result.deltas.values()
    assert combined.relative_error <= 0.1 and delta.rank is not None and delta.rank > 3
    off = np.linalg.norm(dense(result)[site("unet.x")] - expected) / np.linalg.norm(expected)
    assert off == pytest.approx(combined.relative_error, rel=1e-6)


def test_a_dense_term_keeps_the_result_whole() -> None:
    inputs = [(inputs_of(1)[0][0], 0.7), (adapter({"unet.x": full((20, 30), 5)}), 0.5)]
    result, combined = merge(inputs, made_up("ties"))
    (delta,) = result.deltas.values()
    assert isinstance(delta, Full) and not combined.lossy
    off = dense(result)[site("unet.x")] - ties_oracle(matrices(inputs), 0.2)
    assert np.linalg.norm(off) <= 1e-12


def test_kernels_are_flattened() -> None:
    inputs = inputs_of(1, 2, shape=(6, 4, 3, 3))
    result, _ = merge(inputs, made_up("ties"))
    (delta,) = result.deltas.values()
    assert delta.shape == (6, 4, 3, 3)
    off = dense(result)[site("unet.x")] - best(ties_oracle(matrices(inputs), 0.2), 3)
    assert np.linalg.norm(off) <= 1e-12


@pytest.mark.parametrize("name", ["ties", "dare"])
def test_blocks_of_rows_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = inputs_of(1, 2)
    whole, _ = merge(inputs, made_up(name))
    for entries in (1, 7 * 30, 19 * 30):
        monkeypatch.setattr(spaces, "_BLOCK", entries)
        assert distance(dense(whole), dense(merge(inputs, made_up(name))[0])) <= 1e-12


def test_the_statistics_are_those_of_the_whole_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quantile of each block would be another one."""
    seen: list[float] = []
    (operator,) = load_file(MADE_UP / "ties.py")

    def spy(terms: Rows, parameters: Any) -> Any:
        seen.extend(terms.statistics["smallest"])
        return operator.merge(terms, parameters)

    monkeypatch.setattr(spaces, "_BLOCK", 60)
    spied = register(
        Operator(
            "spied", "elements", spy, "", parameters=operator.parameters,
            statistics=operator.statistics,
        )
    )  # fmt: skip
    merge(inputs_of(1, 2), Method.of(spied))
    assert len(seen) == 20 and len(set(seen)) == 2


def test_random_numbers_follow_from_seed_module_and_position() -> None:
    def drawn(module: str, positions: tuple[int, ...], seed: int, first: int = 0) -> Array:
        values = (np.zeros((5 - first, 7)),) * len(positions)
        rows = Rows(module, (1.0,) * len(positions), positions, values, first)
        return rows.uniform(0, seed)

    start = drawn("unet.x", (0,), 0)
    assert np.array_equal(start, drawn("unet.x", (0, 1), 0))
    assert np.array_equal(start[2:], drawn("unet.x", (0,), 0, first=2))
    for other in (drawn("unet.y", (0,), 0), drawn("unet.x", (1,), 0), drawn("unet.x", (0,), 1)):
        assert not np.isclose(start, other).any()
    many = Rows("m", (1.0,), (0,), (np.zeros((300, 300)),)).uniform(0, 3)
    assert abs(many.mean() - 0.5) < 0.005 and many.min() >= 0 and many.max() < 1


def test_dare_is_the_sum_in_expectation() -> None:
    inputs = inputs_of(1, 2, shape=(6, 5))
    expected = sum(w * v for v, w in matrices(inputs))
    rule = RankRule(rank=5)
    found = [
        dense(merge(inputs, made_up("dare", seed=seed), rule)[0])[site("unet.x")]
        for seed in range(400)
    ]
    assert np.linalg.norm(np.mean(found, axis=0) - expected) <= 0.15 * np.linalg.norm(expected)
    assert np.linalg.norm(found[0] - expected) >= 0.3 * np.linalg.norm(expected)


# ---- factors


def orthogonal_oracle(terms: Sequence[tuple[Array, float]], ranks: Sequence[int]) -> Array:
    """TSV-M on dense matrices."""
    found = [np.linalg.svd(w * values, full_matrices=False) for values, w in terms]

    def polar(matrix: Array) -> Array:
        left, _, right = np.linalg.svd(matrix, full_matrices=False)
        return left @ right

    left = polar(np.hstack([x[:, :r] for (x, _, _), r in zip(found, ranks, strict=True)]))
    right = polar(np.hstack([y[:r].T for (_, _, y), r in zip(found, ranks, strict=True)]))
    return (
        left * np.concatenate([s[:r] for (_, s, _), r in zip(found, ranks, strict=True)])
    ) @ right.T


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (6, 4, 3, 3), (8, 40)])
def test_cores_give_the_same_as_dense_matrices(shape: tuple[int, ...]) -> None:
    inputs = inputs_of(1, 2, shape=shape)
    result, combined = merge(inputs, made_up("orthogonal"))
    expected = orthogonal_oracle(matrices(inputs), (2, 3))
    off = np.linalg.norm(dense(result)[site("unet.x")] - expected)
    assert off <= 1e-12 * np.linalg.norm(expected) and not combined.lossy
    (delta,) = result.deltas.values()
    assert delta.rank == 5 and delta.shape == shape


def test_cores_need_no_dense_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = inputs_of(1, 2)

    def refuse(*_: Any, **__: Any) -> Array:
        raise AssertionError("a dense matrix was made")

    monkeypatch.setattr(LowRank, "dense", refuse)
    merge(inputs, made_up("orthogonal"))
    merge(inputs, made_up("equal_norms"), RankRule(rank=2))
    with pytest.raises(AssertionError):
        inputs[0][0].deltas[site("unet.x")].dense()


def test_a_quiet_adapter_keeps_its_directions_in_the_core() -> None:
    loud = adapter({"unet.x": of_spectrum((20, 30), [1e6, 1e5], 1)})
    quiet = adapter({"unet.x": of_spectrum((20, 30), [1e-6, 1e-7], 2)})
    seen: list[Array] = []

    def second(terms: Any, parameters: Any) -> Any:
        seen.extend(terms.values)
        return terms.values[1]

    operator = Operator("second", "factors", second, "")
    result, _ = merge([(loud, 1.0), (quiet, 1.0)], Method.of(operator))
    assert [core.shape for core in seen] == [(4, 4)] * 2
    assert distance(dense(result), dense(quiet)) <= 1e-9 * norm(dense(quiet))


def test_zero_and_dense_terms_in_cores() -> None:
    sum_of_cores = Operator("cores", "factors", lambda t, _: sum(
        w * c for w, c in zip(t.weights, t.values, strict=True)), "")  # fmt: skip
    zero = adapter({"unet.x": of_spectrum((20, 30), [0.0, 0.0], 1)})
    other, whole = inputs_of(2)[0][0], adapter({"unet.x": full((20, 30), 5)})
    result, _ = merge([(zero, 1.0), (other, 0.5)], Method.of(sum_of_cores))
    assert distance(dense(result), {s: 0.5 * v for s, v in dense(other).items()}) <= 1e-12
    nothing, combined = merge([(zero, 1.0), (zero, 0.5)], Method.of(sum_of_cores))
    assert not nothing.deltas and combined.left_out == ["unet.x"]
    result, _ = merge([(whole, 2.0), (other, 0.5)], Method.of(sum_of_cores))
    (delta,) = result.deltas.values()
    assert isinstance(delta, Full)
    expected = 2.0 * dense(whole)[site("unet.x")] + 0.5 * dense(other)[site("unet.x")]
    assert np.linalg.norm(delta.dense() - expected) <= 1e-12


# ---- scalars


def equal_norms_oracle(terms: Sequence[tuple[Array, float]]) -> Array:
    norms = [np.linalg.norm(values) for values, _ in terms]
    mean = math.prod(norms) ** (1 / len(norms))
    total: Array = sum(w * mean / n * v for (v, w), n in zip(terms, norms, strict=True))
    return total


def test_coefficients_from_inner_products() -> None:
    inputs = inputs_of(1, 2, 3)
    result, combined = merge(inputs, made_up("equal_norms"))
    expected = equal_norms_oracle(matrices(inputs))
    assert np.linalg.norm(dense(result)[site("unet.x")] - expected) <= 1e-12
    (delta,) = result.deltas.values()
    assert delta.rank == 9 and not combined.lossy


def test_inner_products_of_low_rank_and_dense_terms() -> None:
    seen: list[Array] = []

    def spy(terms: Any, parameters: Any) -> Any:
        seen.append(terms.products)
        return terms.weights

    inputs = [*inputs_of(1, 2), (adapter({"unet.x": full((20, 30), 5)}), 0.5)]
    for some in (inputs, inputs[:2]):
        merge(some, Method.of(Operator("spy", "scalars", spy, "")))
        flat = np.array([values.reshape(-1) for values, _ in matrices(some)])
        np.testing.assert_allclose(seen.pop(), flat @ flat.T, rtol=1e-12)


def test_a_coefficient_of_zero_leaves_a_term_out() -> None:
    inputs = inputs_of(1, 2)
    first = Operator("first", "scalars", lambda t, _: (1.0, 0.0), "")
    none = Operator("none", "scalars", lambda t, _: (0.0, 0.0), "")
    result, _ = merge(inputs, Method.of(first))
    (delta,) = result.deltas.values()
    assert delta is inputs[0][0].deltas[site("unet.x")]
    nothing, combined = merge(inputs, Method.of(none))
    assert not nothing.deltas and combined.left_out == ["unet.x"]


# ---- terms


@pytest.mark.parametrize("name", ["ties", "dare", "orthogonal", "equal_norms"])
def test_modules_of_one_adapter_vectors_and_norms_are_added(name: str) -> None:
    a = adapter({"unet.x": low_rank((9, 8), 2, 1), "unet.n": full((7,), 2, "w_norm"),
                 "unet.y": low_rank((9, 8), 3, 3)})  # fmt: skip
    b = adapter({"unet.x": low_rank((9, 8), 2, 4), "unet.n": full((7,), 5, "w_norm")})
    found = dense(merge([(a, 0.5), (b, 2.0)], made_up(name))[0])
    x, y = dense(a), dense(b)
    assert np.allclose(found[site("unet.y")], 0.5 * x[site("unet.y")], atol=1e-15)
    added = 0.5 * x[site("unet.n")] + 2.0 * y[site("unet.n")]
    assert np.allclose(found[site("unet.n")], added, atol=1e-15)


def test_an_operator_may_ask_for_modules_of_one_adapter() -> None:
    def halved(terms: Any, parameters: Any) -> Any:
        return [w / 2 for w in terms.weights]

    a, _ = inputs_of(1)[0]
    for alone, factor in ((False, 1.0), (True, 0.5)):
        method = Method.of(Operator("halved", "scalars", halved, "", alone=alone))
        expected = {s: factor * v for s, v in dense(a).items()}
        assert distance(dense(merge([(a, 1.0)], method)[0]), expected) <= 1e-12


def test_weights_and_positions_reach_the_operator() -> None:
    seen: list[Any] = []

    def spy(terms: Any, parameters: Any) -> Any:
        seen.append((terms.module, terms.weights, terms.positions))
        return terms.weights

    (a, _), (b, _), (c, _) = inputs_of(1, 2, 3)
    other = adapter({"unet.y": low_rank((4, 4), 1, 5)})
    method = Method.of(Operator("spy", "scalars", spy, ""))
    merge([(a, 0.7), (other, 1.0), (b, 0.0), (c, -2.0)], method)
    assert seen == [("unet.x", (0.7, -2.0), (0, 3))]


@pytest.mark.parametrize("name", ["ties", "dare", "orthogonal", "equal_norms"])
def test_the_rank_that_is_planned_is_kept(name: str) -> None:
    method = made_up(name)
    inputs = inputs_of(1, 2, 3)
    for rule in (RankRule(), RankRule(rank=3), RankRule(energy=0.99)):
        (delta,) = merge(inputs, method, rule)[0].deltas.values()
        bound = method.operator.highest_rank((2, 3, 4), (20, 30), chosen=rule.truncates)
        assert delta.rank is not None and delta.rank <= bound


def test_an_own_rank_bound_cuts() -> None:
    operator = Operator(
        "low", "elements", lambda t, _: t.values[0], "", rank_bound=lambda ranks: min(ranks)
    )
    (delta,) = merge(inputs_of(3, 2, 1)[::-1], Method.of(operator))[0].deltas.values()
    assert delta.rank == 2


# ---- what is refused


def _bad(space: Any, merge_: Callable[..., Any], **more: Any) -> Method:
    return Method.of(Operator("bad", space, merge_, "", **more))


@pytest.mark.parametrize("space", ["scalars", "factors", "elements"])
def test_results_of_a_wrong_shape_or_not_finite(space: Any) -> None:
    inputs = inputs_of(1, 2)
    with pytest.raises(UsageError, match="operator bad returned an array of the wrong shape") as e:
        merge(inputs, _bad(space, lambda t, _: np.zeros((1, 1))))
    assert e.value.module == "unet.x"

    def broken(terms: Any, parameters: Any) -> Any:
        like = np.zeros(len(terms.weights)) if space == "scalars" else terms.values[0]
        return like * math.nan

    with pytest.raises(NumericsError, match="operator bad returned NaN"):
        merge(inputs, _bad(space, broken))

    def fails(terms: Any, parameters: Any) -> Any:
        raise ZeroDivisionError("by zero")

    with pytest.raises(UsageError, match="operator bad failed") as e:
        merge(inputs, _bad(space, fails))
    assert "ZeroDivisionError: by zero" in str(e.value)


@pytest.mark.parametrize("name", ["ties", "dare", "orthogonal", "equal_norms"])
def test_inputs_that_are_not_finite(name: str) -> None:
    broken = low_rank((20, 30), 2, 9, dtype="float64")
    broken.up.numpy()[0, 0] = math.nan
    with pytest.raises(NumericsError) as caught:
        merge([*inputs_of(1), (adapter({"unet.x": broken}), 1.0)], made_up(name))
    assert caught.value.module == "unet.x"


@dataclass(frozen=True)
class Good:
    share: Annotated[float, Interval(gt=0), lm.Doc("A share.")]
    many: Annotated[tuple[int, ...], lm.Doc("Numbers.")] = ()


@dataclass(frozen=True)
class Bare:
    share: float = 0.5


@dataclass
class Thawed:
    share: Annotated[float, lm.Doc("A share.")] = 0.5


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"name": "No Name"}, "lower case"),
        ({"space": "rows"}, "space is not known"),
        ({"laws": ("ordr",)}, "'ordr' is not a known law"),
        ({"statistics": lambda p: {}}, "only operators on elements"),
        ({"parameters": Bare}, "'share' has no help"),
        ({"parameters": Thawed}, "not a frozen dataclass"),
        ({"parameters": int}, "not a frozen dataclass"),
    ],
)
def test_operators_that_cannot_be(more: dict[str, Any], words: str) -> None:
    plain: dict[str, Any] = {"name": "x", "space": "scalars", "merge": lambda t, p: t.weights,
                             "title": ""}  # fmt: skip
    with pytest.raises(UsageError, match=words):
        Operator(**(plain | more))


def test_values_of_parameters() -> None:
    operator = Operator("x", "scalars", lambda t, p: t.weights, "", parameters=Good)
    assert Method.of(operator, {"share": 1, "many": [1, 2]}).parameters == Good(1.0, (1, 2))
    for values, words in (
        ({}, "needs a value for 'share'"),
        ({"share": 0.0}, "above 0"),
        ({"share": "x"}, "cannot be 'x'"),
        ({"share": 1.0, "other": 1}, "no parameter 'other'"),
    ):
        with pytest.raises(UsageError, match=words):
            Method.of(operator, values)


def test_the_registry(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="loramerge has an operator 'linear'"):
        lm.operator(space="scalars", name="linear")(lambda t, p: t.weights)
    with pytest.raises(UsageError) as caught:
        find_operator("liner")
    assert "did you mean linear?" in str(caught.value)
    with pytest.raises(MissingFile):
        load_file(tmp_path / "none.py")
    for text, words in (
        ("x = 1", "defines no operator"),
        ("1 / 0", "ZeroDivisionError"),
        ("def f(:", "SyntaxError"),
    ):
        (tmp_path / "bad.py").write_text(text, "utf-8")
        with pytest.raises(LoramergeError, match=words):
            load_file(tmp_path / "bad.py")
