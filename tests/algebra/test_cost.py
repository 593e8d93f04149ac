"""The memory of merges: no dense matrix where none is needed, and otherwise those of one module."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from loramerge.algebra import merged
from loramerge.algebra.method import Method
from loramerge.algebra.mix import mix
from loramerge.algebra.operators import OPERATORS, find_operator
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.weights import Weight
from tests.builders.deltas import adapter, dense, low_rank

OUT, IN, RANK = 2400, 1800, 4
DENSE = OUT * IN * 2  # bytes of ΔW in half precision: any dense array is larger
FACTORED = [one.name for one in OPERATORS.shipped() if one.space != "elements"]


def most_bytes(work: Callable[[], Any]) -> int:
    """The most bytes of arrays that were held at a time."""
    work()  # what is imported and cached does not count
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def inputs_of(count: int, modules: int = 1, shape: tuple[int, int] = (OUT, IN)) -> Any:
    names = [f"unet.m{i}" for i in range(modules)]
    found = [
        adapter(
            {n: low_rank(shape, RANK, 10 * i + k, dtype="float16") for k, n in enumerate(names)}
        )
        for i in range(count)
    ]
    return [(one, Weight(0.5)) for one in found]


@pytest.mark.parametrize("name", FACTORED)
def test_no_dense_array_is_made(name: str) -> None:
    operator = find_operator(name)
    inputs = inputs_of(2 if operator.inputs[1] == 2 else 4)
    for correction in (None, find_operator("svc")):
        method = Method.of(operator, correction=correction)
        assert most_bytes(lambda: mix(inputs, method=method, threads=1)) < DENSE  # noqa: B023


def test_a_dense_array_would_be_noticed() -> None:
    ((one, _), *_) = inputs_of(1)
    (delta,) = one.deltas.values()
    assert most_bytes(lambda: delta.dense(dtype="float32")) > DENSE


def test_few_directions_of_a_large_dense_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is within 0.5 % of the optimum, and the same that is reported."""
    method, shape = Method.of(find_operator("ties")), (420, 360)
    found = {}
    for name, least in (("all", 10**9), ("few", 300)):
        monkeypatch.setattr(merged, "_LARGE", least)
        for rule in (RankRule(), RankRule(rank=3)):
            result, combined = mix(inputs_of(2, 1, shape), rule, method=method, threads=1)
            found[name, rule.rank] = next(iter(dense(result).values())), combined.relative_error
    whole = mix(inputs_of(2, 1, shape), RankRule(rank=360), method=method, threads=1)[0]
    (exact,) = dense(whole).values()
    for rank in (None, 3):
        best, few = (
            float(np.linalg.norm(found[name, rank][0] - exact) / np.linalg.norm(exact))
            for name in ("all", "few")
        )
        assert best <= few * (1 + 1e-6) and few <= 1.005 * best
        assert found["few", rank][1] == pytest.approx(few, rel=1e-4)


def test_dense_merges_hold_one_module_at_a_time() -> None:
    method, rule = Method.of(find_operator("ties")), RankRule(rank=RANK)
    shape = (240, 200)
    one, six = (
        most_bytes(lambda: mix(inputs_of(3, count, shape), rule, method=method, threads=1))  # noqa: B023
        for count in (1, 6)
    )
    whole = 8 * shape[0] * shape[1]
    assert whole < one < 20 * whole
    assert six < one + whole
