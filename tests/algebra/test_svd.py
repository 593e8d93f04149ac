from __future__ import annotations

import numpy as np
import pytest

from loramerge.algebra import svd
from loramerge.algebra.svd import decompose, decompose_dense, inner_product
from tests.builders.deltas import Array, rng


def factors(
    m: int, n: int, rank: int, condition: float = 1.0, seed: int = 0
) -> tuple[Array, Array]:
    random = rng(seed)
    up, down = random.standard_normal((m, rank)), random.standard_normal((rank, n))
    values = np.logspace(0, np.log10(condition), rank)
    return up * values, down / values[:, None]


SHAPES = [
    (20, 30, 4),
    (30, 20, 4),
    (9, 9, 9),
    (5, 40, 5),
    (40, 5, 3),
    (6, 7, 12),
    (1, 8, 1),
    (8, 1, 1),
]


@pytest.mark.parametrize(("m", "n", "rank"), SHAPES)
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
def test_every_truncation_is_optimal(m: int, n: int, rank: int, condition: float) -> None:
    up, down = factors(m, n, rank, condition)
    exact = up @ down
    s = np.linalg.svd(exact, compute_uv=False)
    found = decompose(up, down)
    assert np.allclose(found.singular_values, s[: len(found.singular_values)], atol=1e-7 * s[0])
    assert found.energy == pytest.approx(float((exact**2).sum()))
    for k in range(1, found.rank + 1):
        new_up, new_down = found.truncate(k)
        assert new_up.shape == (m, k)
        assert new_down.shape == (k, n)
        error = np.linalg.norm(exact - new_up @ new_down)
        tail = np.linalg.norm(s[k:])
        assert error <= 1.0001 * tail + 1e-7 * s[0]
        assert np.sqrt(found.lost(k)) == pytest.approx(tail, rel=1e-4, abs=1e-7 * s[0])


@pytest.mark.parametrize(("m", "n", "rank"), SHAPES)
def test_both_sides_carry_the_root(m: int, n: int, rank: int) -> None:
    found = decompose(*factors(m, n, rank))
    up, down = found.truncate(found.rank)
    root = np.sqrt(found.singular_values[: found.rank])
    assert np.allclose(np.linalg.norm(up, axis=0), root)
    assert np.allclose(np.linalg.norm(down, axis=1), root)
    assert (np.take_along_axis(up, np.abs(up).argmax(0)[None], 0) > 0).all()


@pytest.mark.parametrize("condition", [1.0, 1e2, 3e3])
def test_gram_and_qr_agree(condition: float) -> None:
    up, down = factors(30, 25, 6, condition)
    by_gram, by_qr = svd._by_gram(up, down), svd._by_qr(up, down)
    assert by_gram is not None
    s = by_qr.singular_values
    assert np.allclose(by_gram.singular_values, s, atol=1e-9 * s[0])
    for k in range(1, 7):
        a, b = (x.truncate(k) for x in (by_gram, by_qr))
        assert np.linalg.norm(a[0] @ a[1] - b[0] @ b[1]) <= 1e-7 * s[0]


@pytest.mark.parametrize("condition", [1e5, 1e9])
def test_gram_declines_what_it_cannot_do(condition: float) -> None:
    assert svd._by_gram(*factors(30, 25, 6, condition)) is None


def test_dead_ranks_take_the_qr_path() -> None:
    up, down = factors(30, 25, 6)
    up[:, 3] = 0.0
    down[4] = down[2]
    assert svd._by_gram(up, down) is None
    found = decompose(up, down)
    assert found.rank == 4  # five directions are left, and two of them are one
    a, b = found.truncate(4)
    assert np.allclose(a @ b, up @ down)


@pytest.mark.parametrize(("m", "n"), [(6, 6), (4, 30), (30, 4), (1, 5), (5, 1), (10, 15)])
def test_dense(m: int, n: int) -> None:
    matrix = rng(m * n).standard_normal((m, n))
    found = decompose_dense(matrix)
    assert np.allclose(found.singular_values, np.linalg.svd(matrix, compute_uv=False))
    up, down = found.truncate(min(m, n))
    assert np.allclose(up @ down, matrix)


def test_empty_and_zero_matrices_are_decomposed() -> None:
    empty = decompose(np.zeros((4, 0)), np.zeros((0, 3)))
    assert (empty.rank, empty.energy, empty.lost(0)) == (0, 0.0, 0.0)
    up, down = empty.truncate(0)
    assert (up.shape, down.shape) == ((4, 0), (0, 3))
    zero = decompose(np.zeros((4, 2)), np.ones((2, 3)))
    assert (zero.rank, zero.energy) == (0, 0.0)
    assert decompose_dense(np.zeros((4, 3))).rank == 0


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_sizes_far_from_one(scale: float) -> None:
    up, down = factors(20, 15, 4)
    for a, b in ((up * scale, down), (up, down * scale)):
        found = decompose(a, b)
        assert found.rank == 4
        x, y = found.truncate(4)
        assert np.linalg.norm(x @ y - a @ b) <= 1e-9 * np.linalg.norm(a @ b)
        assert np.linalg.norm(x) == pytest.approx(np.linalg.norm(y))


def test_inner_product_is_the_dense_one() -> None:
    a, b = factors(12, 9, 3, seed=1), factors(12, 9, 5, seed=2)
    assert inner_product(a, b) == pytest.approx(float(((a[0] @ a[1]) * (b[0] @ b[1])).sum()))
    assert inner_product(a, a) == pytest.approx(float(((a[0] @ a[1]) ** 2).sum()))


def test_a_nearly_square_product_of_high_rank_is_decomposed_dense() -> None:
    up, down = factors(8, 9, 20)
    found = decompose(up, down)
    assert len(found.singular_values) == 8
    a, b = found.truncate(8)
    assert np.allclose(a @ b, up @ down)
