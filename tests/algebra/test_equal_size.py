"""At the size of one rank for all modules, the budget over all loses less than other rules."""

from __future__ import annotations

import pytest

from benchmarks import budgets


@pytest.mark.parametrize("kind", ["flat", "steep", "mixed"])
def test_the_budget_loses_least(kind: str) -> None:
    spectra = budgets.generated(kind, modules=16, rank=24)
    ranks = budgets.budget(spectra, 8)
    most = budgets.numbers(spectra, budgets.uniform(spectra, 8))
    assert budgets.numbers(spectra, ranks) <= most
    found = budgets.table(spectra, 8, ranks)
    ours = found.pop("loramerge --max-size")
    assert set(found) == {"one rank", *budgets.RULES}
    for name, other in found.items():
        assert ours < other, name


def test_the_rules_are_those_of_the_formulas() -> None:
    """By hand: one module of singular values 4, 2, 1."""
    one = budgets.Spectrum(budgets.np.array([4.0, 2.0, 1.0]), 5, 3)
    assert budgets.sv_fro([one], (16 / 21) ** 0.5 - 1e-9) == [1]
    assert budgets.sv_fro([one], (16 / 21) ** 0.5 + 1e-9) == [2]
    assert budgets.sv_cumulative([one], 4 / 7 + 1e-9) == [2]
    assert budgets.sv_ratio([one], 0.5) == [2] and budgets.sv_ratio([one], 0.0) == [1]
    assert budgets.by_score(budgets.fro_ckpt, [one], 17) == [2]
    assert budgets.error([one], [1]) == pytest.approx((5 / 21) ** 0.5)
