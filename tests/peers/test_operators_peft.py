"""Operators on elements against PEFT's own, on dense matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from loramerge.algebra.method import Method
from loramerge.algebra.mix import mix
from loramerge.algebra.operators import find_operator
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.views import Rows
from loramerge.algebra.weights import Weight
from tests.builders.deltas import adapter, dense, low_rank, site

torch: Any = pytest.importorskip("torch")
utils: Any = pytest.importorskip("peft.utils.merge_utils")

pytestmark = pytest.mark.peers

SHAPE, WEIGHTS = (16, 21), (0.7, 0.4, 1.3)
PLACE = site("unet.x")

THEIRS: dict[str, Callable[[Any, Any, float], Any]] = {
    "ties": lambda tensors, weights, density: utils.ties(tensors, weights, density),
    "magnitude-prune": lambda tensors, weights, density: utils.magnitude_prune(
        tensors, weights, density
    ),
    # all is kept, since their random numbers are others
    "dare": lambda tensors, weights, _: utils.dare_linear(tensors, weights, 1.0),
    "dare-ties": lambda tensors, weights, _: utils.dare_ties(tensors, weights, 1.0),
}


@pytest.mark.filterwarnings("ignore:The density")
@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("density", [0.2, 0.7])
def test_operators_equal_those_of_peft(name: str, density: float) -> None:
    found = [adapter({"unet.x": low_rank(SHAPE, 2 + i, 50 + i, dtype="float64")}) for i in range(3)]
    matrices = [dense(a)[PLACE] for a in found]
    expected = THEIRS[name](
        [torch.from_numpy(m) for m in matrices], torch.tensor(WEIGHTS, dtype=torch.float64), density
    ).numpy()
    values: dict[str, Any] = {"density": 1.0 if name.startswith("dare") else density}
    if name.endswith("ties"):
        values["elect"] = "equal"
    method = Method.of(find_operator(name), values, "literal")
    inputs = [(a, Weight(w)) for a, w in zip(found, WEIGHTS, strict=True)]
    result, _ = mix(inputs, RankRule(rank=min(SHAPE)), method=method, threads=1)
    assert np.linalg.norm(dense(result)[PLACE] - expected) <= 3e-7 * np.linalg.norm(expected)


@pytest.mark.filterwarnings("ignore:The density")
@pytest.mark.parametrize("name", ["dare", "dare-ties"])
def test_the_same_masks_give_the_same_change(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    density = 0.4

    def draws(shape: tuple[int, ...], term: int) -> Any:
        return np.random.default_rng(term).random(shape)

    asked: list[float] = []

    def bernoulli(chances: Any) -> Any:
        numbers = torch.from_numpy(draws(tuple(chances.shape), len(asked)))
        asked.append(float(chances.reshape(-1)[0]))
        return (numbers < chances).to(chances.dtype)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    monkeypatch.setattr(
        Rows, "uniform", lambda self, term, seed: draws(self.values[term].shape, term)
    )
    found = [adapter({"unet.x": low_rank(SHAPE, 2 + i, 50 + i, dtype="float64")}) for i in range(3)]
    tensors = [torch.from_numpy(dense(a)[PLACE]) for a in found]
    theirs = {"dare": utils.dare_linear, "dare-ties": utils.dare_ties}[name]
    expected = theirs(tensors, torch.tensor(WEIGHTS, dtype=torch.float64), density).numpy()
    assert asked == [density] * 3
    values: dict[str, Any] = {"density": density}
    if name == "dare-ties":
        values["elect"] = "equal"
    method = Method.of(find_operator(name), values, "literal")
    inputs = [(a, Weight(w)) for a, w in zip(found, WEIGHTS, strict=True)]
    result, _ = mix(inputs, RankRule(rank=min(SHAPE)), method=method, threads=1)
    assert np.linalg.norm(dense(result)[PLACE] - expected) <= 3e-7 * np.linalg.norm(expected)
