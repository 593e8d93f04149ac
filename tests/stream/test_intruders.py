"""Intruder dimensions against their definition on dense matrices."""

from __future__ import annotations

import numpy as np
import pytest

from loramerge.algebra.health import LIMITS
from loramerge.algebra.health.strength import strength_findings
from loramerge.stream.intruders import intruders_of

SHAPE = (96, 80)


def _weight(seed):
    """A weight with a spectrum that falls as those of trained layers do."""
    random = np.random.default_rng(seed)
    u, _ = np.linalg.qr(random.normal(size=(SHAPE[0], SHAPE[1])))
    v, _ = np.linalg.qr(random.normal(size=(SHAPE[1], SHAPE[1])))
    return (u * np.arange(1, SHAPE[1] + 1) ** -0.5) @ v.T, u, v


def _definition(weight, change, cosine=0.6):
    old, _, _ = np.linalg.svd(weight, full_matrices=False)
    new, _, _ = np.linalg.svd(weight + change, full_matrices=False)
    return int((np.abs(old.T @ new[:, :10]).max(axis=0) < cosine).sum())


@pytest.mark.parametrize("seed", range(4))
def test_new_directions_are_counted_as_the_definition_has_it(seed):
    weight, u, _ = _weight(seed)
    random = np.random.default_rng(seed + 10)
    left = random.normal(size=(SHAPE[0], 3))
    left, _ = np.linalg.qr(left - u @ (u.T @ left))  # orthogonal to the whole weight
    right, _ = np.linalg.qr(random.normal(size=(SHAPE[1], 3)))
    change = 2.0 * left @ right.T
    assert intruders_of(weight, change) == _definition(weight, change) >= 3


def test_a_stronger_or_weaker_weight_has_no_new_directions():
    weight, u, v = _weight(1)
    for factor in (0.5, 2.0):
        assert intruders_of(weight, factor * weight) == 0
    assert intruders_of(weight, 0.4 * np.outer(u[:, 0], v[:, 0])) == 0


def test_a_change_below_the_weights_mean_is_not_decomposed(monkeypatch):
    weight, _, _ = _weight(2)
    random = np.random.default_rng(3)
    change = np.outer(random.normal(size=SHAPE[0]), random.normal(size=SHAPE[1]))
    change *= 0.9 * np.linalg.norm(weight) / SHAPE[1] ** 0.5 / np.linalg.norm(change)

    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(np.linalg, "svd", never)
    assert intruders_of(weight.astype("float32"), change.astype("float32")) == 0


@pytest.mark.parametrize(
    ("change", "family", "codes"),
    [
        (0.3, "tiny", set()), (0.33 * 1.9, "tiny", set()), (2.4, "tiny", {"stronger-than-usual"}),
        (0.02, "tiny", {"weaker-than-usual"}), (0.02, "sdxl", set()), (0.9, "sdxl", set()),
        (1.2, "sdxl", {"stronger-than-usual"}), (None, "tiny", set()),
    ],
)  # fmt: skip
def test_the_size_beside_what_is_usual(change, family, codes):
    found = list(strength_findings(family, change=change))
    assert {problem.code for problem in found} == codes and codes <= LIMITS.keys()
    assert all("weight" in problem.remedy for problem in found)


def test_eight_times_the_strength_is_found_with_the_base(run):
    run.ok("convert", "zuzu", "--rescale", "8", "-o", "loud.safetensors")
    run.ok("convert", "zuzu", "--rescale", "0.02", "-o", "faint.safetensors")
    for name, expected in (
        ("zuzu", set()),
        ("loud", {"stronger-than-usual", "intruders"}),
        ("faint", {"weaker-than-usual"}),
    ):
        (found,) = run.ok("inspect", name, "--base", "tiny", "--json").json
        assert {f["code"] for f in found["findings"]} == expected
        assert len(found["base"]["strongest"]) == 3
        assert found["base"]["usual_change"] == {"low": 0.31, "high": 0.33, "adapters": 2}
    assert "new to the base" in run.ok("inspect", "zuzu", "--base", "tiny").out
