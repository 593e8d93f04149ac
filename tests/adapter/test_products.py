"""Products of thin factors, computed a few columns at a time."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from loramerge.adapter.kinds.bases import products
from tests.builders.deltas import rng

SHAPES = [
    (85, 16, 3072), (85, 16, 3073), (1, 1, 64), (400, 100, 192), (300, 16, 256), (9, 200, 640),
    (0, 4, 128), (5, 0, 128), (3, 4, 0),
]  # fmt: skip


def error(rows: int, rank: int, columns: int, *, turned: bool) -> float:
    random = rng(rows + rank)
    up = random.standard_normal((rows, rank)).astype("f4")
    down = random.standard_normal((rank, columns)).astype("f4")
    if turned:
        up, down = np.asfortranarray(up), np.asfortranarray(down)
    out = np.full((rows, columns), np.nan, "f4")
    products.multiply(up, down, out)
    exact = up.astype("f8") @ down.astype("f8")
    return float(np.abs(out - exact).max(initial=0)) / max(1.0, np.abs(exact).max(initial=0))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_is_that_of_the_factors(shape: tuple[int, int, int], turned: bool) -> None:
    assert error(*shape, turned=turned) < 1e-6


def test_parts_that_leave_columns_out_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fewer(bounds: Any) -> Any:
        return list(pairwise(bounds))[:-1]

    monkeypatch.setattr(products, "pairwise", fewer)
    assert not error(85, 16, 3072, turned=False) < 1e-6
