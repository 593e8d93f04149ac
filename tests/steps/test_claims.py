"""Adapters in checkpoints: planted faults are found and named, and sound checkpoints are not accused.

The checkpoints are made in float64 by rules of our own (`tests.builders.planted`) and rounded once, or
summed in half types as other programs do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loramerge.algebra.weights import Weight
from loramerge.errors import LoramergeError
from loramerge.steps.references import Reference
from loramerge.verbs.bake import Bake, bake
from loramerge.verbs.verify import Verify, VerifyResult, verify
from tests.builders.planted import FAULTS, MODULES, Planted, fused, plant, sound
from tests.tail import tail

TYPES = ("F32", "F16", "BF16")
# every fault a few times, over types; more than two hundred with the tail
CASES = [
    (name, seed, TYPES[(number + seed) % 3])
    for seed in range(12)
    for number, name in enumerate(FAULTS)
]
# on a base in float8 most of a small change is lost, and what is told is less exact
COARSE = ("layer_lost", "baked_twice", "strength_8", "subtracted", "not_baked", "another_adapter",
          "not_finite", "norm_changed")  # fmt: skip


def check(planted: Planted, out: Path, *, stated: bool = True) -> VerifyResult:
    references = tuple(
        Reference(str(path), Weight(weight), str(weight), stated=True)
        if stated
        else Reference(str(path))
        for path, weight in zip(planted.adapters, planted.weights, strict=True)
    )
    base = str(planted.folder / "base")
    return verify(Verify(file=Reference(str(out)), base=base, lora=references))


@pytest.mark.parametrize(
    ("name", "seed", "dtype"),
    [case if case[1] == 0 else tail(*case) for case in CASES]
    + [
        one if one == ("another_adapter", 0, "F8_E4M3") else tail(*one)
        for one in ((name, seed, "F8_E4M3") for name in COARSE for seed in range(3))
    ],
)
def test_a_planted_fault_is_named(name: str, seed: int, dtype: str, tmp_path: Path) -> None:
    planted = plant(tmp_path, seed, dtype)
    tensors, words = FAULTS[name](planted, np.random.default_rng(seed))
    found = check(planted, planted.write(tensors))
    assert not found.holds and found.exit_code == 1
    missing = [one for one in words if isinstance(one, str) and one not in found.verdict]
    assert missing == [], found.verdict
    assert found.contents is not None
    factors = [one for one in words if isinstance(one, float)]
    strengths = [one.strength for one in found.contents.faults]
    assert not factors or strengths == pytest.approx(factors, rel=0.02)


@pytest.mark.parametrize(
    ("dtype", "half", "adapters"),
    [
        ("F16", None, 1),
        ("BF16", "BF16", 2),
        *(tail(d, h, n) for d in TYPES for h in (None, d) for n in (1, 2, 3)),
        tail("F16", "BF16", 2),
    ],
)
def test_a_sound_bake_is_not_accused(
    dtype: str, half: str | None, adapters: int, tmp_path: Path
) -> None:
    for seed in range(2):
        planted = plant(tmp_path / str(seed), seed, dtype, adapters)
        out = planted.write(sound(planted, half=half))
        found = check(planted, out)
        assert found.holds, found.verdict
        again = check(planted, out, stated=False)
        assert again.holds, again.verdict
        assert again.contents is not None
        strengths = [one.strength for one in again.contents.found]
        assert strengths == pytest.approx(planted.weights, rel=5e-3)


@pytest.mark.parametrize("dtype", ["F32", tail("F16")])
@pytest.mark.parametrize("target", ["BF16", "F8_E4M3", tail("F16"), tail("F8_E5M2")])
def test_another_type_is_no_fault(dtype: str, target: str, tmp_path: Path) -> None:
    planted = plant(tmp_path, 3, dtype, 2)
    out = planted.write(sound(planted, target))
    assert check(planted, out).holds
    found = check(planted, out, stated=False)
    assert found.holds and found.contents is not None
    strengths = [one.strength for one in found.contents.found]
    assert strengths == pytest.approx(planted.weights, rel=0.05)
    for name in ("layer_lost", "baked_twice"):
        names = list(MODULES)
        factors = {module: list(planted.weights) for module in names}
        if name == "layer_lost":
            factors[names[2]] = [0.0, 0.0]
        else:
            factors = {module: [2 * w for w in those] for module, those in factors.items()}
        wrong = check(planted, planted.write(fused(planted, factors, target), name))
        assert not wrong.holds
        assert (names[2] if name == "layer_lost" else "baked twice") in wrong.verdict


@pytest.mark.parametrize("storage", ["F8_E4M3", tail("BF16")])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", tail("feedback"), tail("balanced")])
def test_what_rounding_takes_is_no_fault(storage: str, rounding: str, tmp_path: Path) -> None:
    """A base that lies on the numbers of its type loses changes that are smaller than these."""
    size = 0.02 if storage == "F8_E4M3" else 0.001
    planted = plant(tmp_path, 5, storage, 1, size=size)
    planted.weights = [0.8]
    (path,) = planted.adapters
    out = tmp_path / "out"
    bake(
        Bake(
            base=str(tmp_path / "base"),
            adapters=(Reference(str(path), Weight(0.8), "0.8"),),
            output=str(out),
            rounding=rounding,  # type: ignore[arg-type]
            allow_loss=True,
        )
    )
    found = check(planted, out)
    assert found.holds, found.verdict
    assert found.contents is not None and found.contents.kept is not None
    if rounding == "nearest":
        assert found.contents.kept == pytest.approx(found.contents.expected, abs=1e-6)
        assert found.contents.kept < 0.9  # so the test says something
    again = check(planted, out, stated=False)
    assert again.contents is not None
    (strength,) = (one.strength for one in again.contents.found)
    assert strength == pytest.approx(0.8, rel=0.15), again.verdict
    by_recipe = verify(Verify(file=Reference(str(out))))
    assert by_recipe.holds, by_recipe.verdict


def test_two_adapters_that_are_one(tmp_path: Path) -> None:
    planted = plant(tmp_path, 1, "F32")
    planted.adapters *= 2
    planted.changes *= 2
    planted.weights = [0.5, 0.3]
    out = planted.write(sound(planted))
    assert check(planted, out).holds  # the sum is as it should be
    found = check(planted, out, stated=False)
    assert "lora0 is too much like the other adapters" in found.verdict


def test_one_of_two_is_lost_in_a_module(tmp_path: Path) -> None:
    planted = plant(tmp_path, 2, "F16", 2)
    name = list(MODULES)[4]
    factors = {module: list(planted.weights) for module in MODULES}
    factors[name][1] = 0.0
    found = check(planted, planted.write(fused(planted, factors)))
    assert "change is lost" in found.verdict and f"{name} (lora1)" in found.verdict


def test_the_strength_by_blocks_is_that_of_least_squares(tmp_path: Path) -> None:
    """The products of blocks of rows give what dense least squares gives in float64."""
    planted = plant(tmp_path, 7, "BF16", 2)
    random = np.random.default_rng(7)
    factors = {module: list(random.uniform(0.2, 1.5, 2)) for module in MODULES}
    tensors = fused(planted, factors)
    found = check(planted, planted.write(tensors), stated=True)
    assert found.contents is not None
    for block, one in found.contents.found[0].blocks.items():
        names = [n for n in MODULES if n.startswith(f"{block}.")]
        changes = [
            np.concatenate([(w * change[n]).reshape(-1) for n in names])
            for w, change in zip(planted.weights, planted.changes, strict=True)
        ]
        moved = np.concatenate(
            [
                (
                    tensors[f"{n}.weight"].astype("float64")
                    - planted.base[f"{n}.weight"].astype("float64")
                ).reshape(-1)
                for n in names
            ]
        )
        exact = np.linalg.lstsq(np.stack(changes, 1), moved, rcond=None)[0]
        assert one.strength == pytest.approx(exact[0], rel=1e-4)


def test_refusals(tmp_path: Path) -> None:
    planted = plant(tmp_path, 1)
    out = Reference(str(planted.write(sound(planted))))
    lora = (Reference(str(planted.adapters[0])),)
    for wrong in (
        Verify(file=out, lora=lora),
        Verify(file=out, base=str(tmp_path / "base")),
        Verify(file=out, base=str(tmp_path / "base"), lora=lora, input=("a=b",)),
        Verify(file=lora[0], base=str(tmp_path / "base"), lora=lora),
        Verify(file=out),
    ):
        with pytest.raises(LoramergeError):
            verify(wrong)
