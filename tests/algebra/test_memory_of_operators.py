"""An operator on elements holds about one dense module, however many adapters there are."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from loramerge.adapter import LowRank, Site
from loramerge.algebra import spaces
from loramerge.algebra.budget import Cut
from loramerge.algebra.combine import Work, at_site
from loramerge.algebra.method import Method
from loramerge.algebra.operators import OPERATORS
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.terms import Term

SHAPE, RANK, MOST = (500, 400), 4, 4.5  # times ΔW in float64


def peak(method: str, count: int) -> float:
    random = np.random.default_rng(0)
    ups, downs = (random.standard_normal((count, n, RANK), "float32") for n in SHAPE)
    deltas = [LowRank.from_arrays(up, down.T, SHAPE) for up, down in zip(ups, downs, strict=True)]
    terms = [Term(delta, 0.5, n) for n, delta in enumerate(deltas)]
    work = Work(Method.of(OPERATORS[method]), None, precise=False)
    tracemalloc.start()
    try:
        at_site(Site(("m",), "weight"), terms, work, [Cut(RankRule(rank=RANK))], [None])
        return tracemalloc.get_traced_memory()[1] / (8 * SHAPE[0] * SHAPE[1])
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("method", "count"),
    [("ties", 12), ("ties-knots", 4)],  # cores are as high as all ranks together
)
def test_memory_is_that_of_one_module(
    method: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spaces, "_BLOCK", 1 << 12)
    peak(method, 2)  # imports count once
    assert peak(method, count) < MOST


def test_all_adapters_dense_at_a_time_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: Any = spaces._gathered

    def lavish(statistic: Any, sources: Any, rows: int) -> Any:
        whole = [source(0, rows) for source in sources]
        return gathered(statistic, [lambda a, b, one=one: one[a:b] for one in whole], rows)

    monkeypatch.setattr(spaces, "_BLOCK", 1 << 12)
    monkeypatch.setattr(spaces, "_gathered", lavish)
    assert peak("ties", 12) > MOST
