"""Fair cuts of what is unusual: nothing, one alone, other kinds, many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter import Delta
from loramerge.algebra.budget import Cut
from loramerge.algebra.fair import combine_fairly
from loramerge.algebra.method import Method
from loramerge.algebra.operators import find_operator
from loramerge.algebra.outcome import Combined
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.terms import Term
from tests.builders.deltas import full, low_rank, norm, of_spectrum, site, tensor

SHAPE = (12, 9)


def zero() -> Delta:
    made = low_rank(SHAPE, 2)
    return made.from_arrays(np.zeros((12, 2)), np.zeros((2, 9)), SHAPE)


def cut(*inputs: Delta, rank: int = 3, **options: object) -> Combined:
    terms = {site("unet.a"): [Term(delta, 1.0, place) for place, delta in enumerate(inputs)]}
    (found,) = combine_fairly(terms, terms, [Cut(RankRule(rank=rank))], threads=1, **options)  # type: ignore[arg-type]
    return found


def test_zeros_lose_nothing() -> None:
    found = cut(zero(), zero())
    assert found.losses == {} and found.left_out == ["unet.a"]
    beside = cut(zero(), low_rank(SHAPE, 5, 1))
    assert set(beside.losses) == {1} and beside.outcomes[0].rank_after == 3


def test_one_alone_gets_its_best_approximation() -> None:
    sizes = [5.0, 3.0, 2.0, 1.0, 0.5]
    found = cut(of_spectrum(SHAPE, sizes))
    assert found.losses[0] == pytest.approx((1.25 / 39.25) ** 0.5, rel=1e-5)
    assert found.relative_error == pytest.approx(found.losses[0], rel=1e-5)


@pytest.mark.parametrize("other", [full(SHAPE, 3), low_rank((12, 1, 3, 3), 4, 4)])
def test_other_kinds(other: Delta) -> None:
    first = low_rank(other.shape, 4, 5)
    found = cut(first, other)
    assert found.outcomes[0].rank_after == 3 and set(found.losses) == {0, 1}


def test_what_no_ingredient_has_comes_last_but_is_not_lost_for_nothing() -> None:
    """A mix that was changed since has directions of its own."""
    first, second = of_spectrum(SHAPE, [2.0, 1.0], 1), of_spectrum(SHAPE, [0.2, 0.1], 2)
    strange = of_spectrum(SHAPE, [1.0, 0.5], 3)
    whole = {site("unet.a"): [Term(one) for one in (first, second, strange)]}
    parts = {site("unet.a"): [Term(first, 1.0, 0), Term(second, 1.0, 1)]}
    errors = [
        combine_fairly(whole, parts, [Cut(RankRule(rank=rank))], threads=1)[0] for rank in (4, 5, 6)
    ]
    assert max(errors[0].losses.values()) < 1e-3
    assert errors[0].relative_error > errors[1].relative_error > errors[2].relative_error
    assert errors[2].relative_error < 1e-6


def test_results_of_other_operators_are_cut_too() -> None:
    a, b = of_spectrum(SHAPE, [20.0, 10.0, 5.0], 1), of_spectrum(SHAPE, [0.2, 0.1, 0.05], 2)
    for name in ("ties", "tsv-m"):
        operator = find_operator(name)
        assert operator is not None
        found = cut(a, b, rank=3, method=Method.of(operator))
        assert max(found.losses.values()) < 0.6 and found.outcomes[0].rank_after == 3


def test_four_adapters_lose_alike() -> None:
    inputs = [
        of_spectrum((40, 36), [10.0**place * (i + 1) ** -0.5 for i in range(6)], place)
        for place in range(4)
    ]
    terms = {site(f"unet.m{n}"): [Term(d, 1.0, p) for p, d in enumerate(inputs)] for n in range(3)}
    (found,) = combine_fairly(terms, terms, [Cut(RankRule(rank=12))], threads=1)
    assert max(found.losses.values()) < 1.1 * min(found.losses.values()) < 0.8


def test_not_a_number_is_found() -> None:
    from loramerge.errors import NumericsError

    bad = low_rank(SHAPE, 2)
    bad = bad.__class__(tensor(np.full((12, 2), np.nan)), bad.down, SHAPE, bad.scale)
    with pytest.raises(NumericsError):
        cut(bad, low_rank(SHAPE, 2, 1))


def test_a_quiet_adapter_of_the_field_loses_half_as_much(shared_data: Path) -> None:
    """Two adapters that people published, one at a twentieth, at the same number of bytes."""
    loud, quiet = (
        lm.load(shared_data / "adapters" / f"{name}.safetensors")
        for name in ("analog_svd_rank4", "hf_catundchat")
    )

    def worst(*, fair: bool) -> float:
        result = lm.mix([(loud, 1.0), (quiet, 0.05)], max_size="50%", fair=fair)
        return max(_lost(loud, result), _lost(quiet, result))

    assert worst(fair=True) < 0.5 * worst(fair=False)


def _lost(part: lm.Adapter, result: lm.Adapter) -> float:
    """The share of an ingredient's norm that is outside of a result's outputs, or of its inputs."""
    lost = total = 0.0
    for where, delta in part.deltas.items():
        own = delta.dense().reshape(delta.shape[0], -1)
        energy = norm({where: own}) ** 2
        total += energy
        if where not in result.deltas:
            lost += energy
            continue
        up, down = (f.reshape(len(f), -1) for f in result.deltas[where].factors())
        outputs, inputs = np.linalg.qr(up)[0], np.linalg.qr(down.T)[0]
        inside = max(norm({where: outputs.T @ own}), norm({where: own @ inputs}))
        lost += energy - inside**2
    return (lost / total) ** 0.5
