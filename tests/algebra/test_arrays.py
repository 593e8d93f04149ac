from __future__ import annotations

import numpy as np
import pytest

from loramerge.algebra import arrays
from loramerge.algebra.svd import decompose, decompose_dense
from tests.builders.deltas import rng


@pytest.mark.parametrize("device", [None, "cpu", "numpy"])
def test_the_processor_is_numpy(device: str | None) -> None:
    array = np.ones((2, 3))
    assert arrays.check_device(device) is None
    assert arrays.on_device(array, None) is array
    assert arrays.to_numpy(array) is array
    assert arrays.namespace(array) is np


@pytest.mark.parametrize("shape", [(20, 15, 4), (6, 7, 12), (30, 8, 8), (8, 30, 8)])
def test_torch_gives_what_numpy_gives(shape: tuple[int, int, int]) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("array_api_compat")
    m, n, rank = shape
    random = rng(1)
    up, down = random.standard_normal((m, rank)), random.standard_normal((rank, n))
    dead = up.copy()
    dead[:, 0] = 0.0
    pairs = [
        (decompose(torch.from_numpy(x), torch.from_numpy(down)), decompose(x, down))
        for x in (up, dead)
    ]
    pairs.append((decompose_dense(torch.from_numpy(up)), decompose_dense(up)))
    for found, expected in pairs:
        assert isinstance(found.singular_values, np.ndarray)
        assert np.allclose(found.singular_values, expected.singular_values)
        assert found.rank == expected.rank
        for k in range(1, found.rank + 1):
            a, b = (x.truncate(k) for x in (found, expected))
            assert isinstance(a[0], np.ndarray)
            assert np.allclose(a[0], b[0])
            assert np.allclose(a[1], b[1])
