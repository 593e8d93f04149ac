"""Leading singular directions: near the optimum for every spectrum, and how a lazy method fails that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loramerge.algebra import leading
from loramerge.algebra.leading import decompose_leading, decompose_whole

Array = np.ndarray[Any, Any]

# spectra over the smaller side; "noise" is a matrix of independent entries
SPECTRA = {
    "slow": lambda n: np.arange(1, n + 1) ** -0.5,
    "slower": lambda n: np.arange(1, n + 1) ** -0.15,
    "harmonic": lambda n: 1 / np.arange(1, n + 1),
    "steep": lambda n: 0.8 ** np.arange(n),
    "steps": lambda n: np.where(np.arange(n) < 6, 3.0, np.where(np.arange(n) < 12, 2.99, 1.0)),
    "strong before slow": lambda n: np.where(np.arange(n) < 4, 10.0, 1 - np.arange(n) / n),
    "flat": lambda n: np.ones(n),
    "low rank": lambda n: np.where(np.arange(n) < 7, 1.0, 0.0),
    "low rank in noise": lambda n: np.where(np.arange(n) < 7, 1.0, 1e-3),
}
SHAPES = [(150, 150), (140, 420), (420, 140)]
MOST = 1.005  # of the optimum


def of_spectrum(shape: tuple[int, int], sizes: Array, seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    short = min(shape)
    left = np.linalg.qr(random.standard_normal((shape[0], short)))[0]
    right = np.linalg.qr(random.standard_normal((shape[1], short)))[0]
    return (left * sizes) @ right.T


def error(matrix: Array, found: leading.Decomposition, rank: int) -> float:
    up, down = found.truncate(rank)
    return float(np.linalg.norm(matrix - up.astype("float64") @ down))


def excess(matrix: Array, found: leading.Decomposition, rank: int) -> float:
    """The error beside the optimum, which rounding to float32 may raise from zero."""
    sizes = np.linalg.svd(matrix, compute_uv=False)
    optimum = np.sqrt((sizes[rank:] ** 2).sum())
    return error(matrix, found, rank) / max(optimum, 1e-5 * float(np.linalg.norm(matrix)))


@pytest.mark.parametrize("rank", [1, 10, 20])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SPECTRA)
def test_the_error_is_near_the_optimum(name: str, shape: tuple[int, int], rank: int) -> None:
    matrix = of_spectrum(shape, SPECTRA[name](min(shape)))
    found = decompose_leading(matrix.astype("float32"), rank)
    assert excess(matrix, found, rank) <= MOST
    assert len(found.singular_values) in (rank, min(shape))
    said = np.sqrt(found.lost(rank))
    assert said == pytest.approx(error(matrix, found, rank), rel=1e-3, abs=1e-5)
    assert found.energy == pytest.approx(float((matrix**2).sum()), rel=1e-5)


def test_fewer_directions_are_computed_than_there_are() -> None:
    matrix = of_spectrum((150, 200), SPECTRA["slow"](150)).astype("float32")
    assert len(decompose_leading(matrix, 10).singular_values) == 10
    assert len(decompose_leading(matrix, 60).singular_values) == 150  # as fast
    assert len(decompose_leading(matrix, None).singular_values) == 150


def test_a_random_range_without_power_iterations_fails(monkeypatch: Any) -> None:
    """The first block alone is more than 5 % off, and the bound above catches that."""
    monkeypatch.setattr(leading._Krylov, "holds", lambda *_, **__: True)
    matrix = of_spectrum((150, 200), SPECTRA["slow"](150))
    space = leading._Krylov.grown(matrix.astype("float32"), 10, float((matrix**2).sum()))
    assert space is not None and len(space.images) == 1
    assert excess(matrix, space.decomposition(10, turned=False), 10) > 1.05 > MOST


def test_too_slow_a_spectrum_is_decomposed_whole(monkeypatch: Any) -> None:
    monkeypatch.setattr(leading._Krylov, "holds", lambda *_, **__: False)
    matrix = of_spectrum((150, 200), SPECTRA["slow"](150)).astype("float32")
    assert len(decompose_leading(matrix, 5).singular_values) == 150


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_matrix_gives_the_same_bits(shape: tuple[int, int]) -> None:
    matrix = of_spectrum(shape, SPECTRA["slow"](min(shape))).astype("float32")
    one, two = (decompose_leading(matrix.copy(), 6).truncate(6) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    up, down = one
    assert up.dtype == down.dtype == np.float32
    largest = np.take_along_axis(up, np.abs(up).argmax(axis=0)[None], axis=0)
    assert (largest > 0).all()


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_whole_decomposition(shape: tuple[int, int], precise: bool) -> None:
    matrix = of_spectrum(shape, SPECTRA["harmonic"](min(shape)))
    found = decompose_whole(matrix, precise=precise)
    assert np.allclose(found.singular_values, SPECTRA["harmonic"](min(shape)), atol=1e-9)
    assert error(matrix, found, found.rank) < 1e-7
    assert excess(matrix, found, 9) <= 1 + 1e-6


def test_float64_stays_float64() -> None:
    matrix = of_spectrum((150, 200), SPECTRA["steep"](150))
    found = decompose_leading(matrix, 10, precise=True)
    up, _ = found.truncate(10)
    assert up.dtype == np.float64
    assert np.allclose(found.singular_values, SPECTRA["steep"](150)[:10], rtol=1e-9)


def test_directions_of_no_size_are_rounding() -> None:
    matrix = of_spectrum((150, 200), SPECTRA["low rank"](150)).astype("float32")
    assert decompose_leading(matrix, 12).rank == 7
    assert decompose_whole(matrix).rank == 7
