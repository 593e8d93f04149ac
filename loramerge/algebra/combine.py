"""Sum deltas site by site, at the rank a rule allows. mix and resize are both this.

A site with one term and nothing to cut keeps its factors. Several low-rank terms are concatenated
and brought to their numerical rank; a term without a low-rank form makes the sum dense.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from loramerge.adapter import Delta, LowRank, Site
from loramerge.adapter.kinds.full import sum_of_whole
from loramerge.adapter.kinds.replacement import same_replacement
from loramerge.algebra.arrays import on_device, to_numpy
from loramerge.algebra.outcome import Combined, Outcome, SizeModel
from loramerge.algebra.ranks import (
    Candidate,
    RankRule,
    ranks_for_error,
    ranks_for_size,
    site_rank,
)
from loramerge.algebra.svd import Decomposition, decompose, decompose_dense
from loramerge.algebra.terms import naming
from loramerge.algebra.workers import ordered
from loramerge.errors import NumericsError, ShapeError
from loramerge.events import Note, Notify, ignore
from loramerge.files.dtypes import is_float

__all__ = ["combine"]


@dataclass(frozen=True)
class _How:
    """Where and how carefully decompositions are computed."""

    device: str | None
    precise: bool


def combine(
    terms: Mapping[Site, Sequence[Delta]],
    rule: RankRule,
    *,
    sizes: SizeModel | None = None,
    device: str | None = None,
    precise: bool = False,
    threads: int | None = None,
    task: str = "",
    notify: Notify = ignore,
) -> Combined:
    """Sum the terms of every site and cut the sums by a rule.

    Args:
        terms: site → deltas to add, each already scaled by its weight; none may be empty.
        sizes: needed where the rule has `max_size`.
        device: torch device, or None for numpy.
        precise: decompose without Gram matrices, for float64 output.

    Raises:
        ShapeError: if the terms of a site differ in shape.
        NumericsError: if an input holds NaN or infinity.
    """
    how = _How(device, precise)
    chosen: dict[Site, int] | None = None
    if rule.max_size is not None or rule.error_chooses:
        chosen = _ranks_over_all(terms, rule, sizes, how, threads, notify)

    def work(site: Site) -> Outcome:
        with naming(site), _quiet():
            return _site(site, terms[site], rule, chosen, how)

    combined = Combined(tuple(ordered(work, terms, threads=threads, task=task, notify=notify)))
    _tell_of_kinds(terms, combined, notify)
    return combined


def _tell_of_kinds(
    terms: Mapping[Site, Sequence[Delta]], combined: Combined, notify: Notify
) -> None:
    """Say what sums of other kinds than LoRA have become."""
    became: Counter[str] = Counter()
    kinds: set[str] = set()
    for outcome in combined.outcomes:
        other = {term.kind for term in terms[outcome.site] if term.facts.compact}
        if outcome.delta is not None and other and outcome.delta.kind not in other:
            kinds |= other
            became[outcome.delta.kind] += 1
    words = {"lora": "as plain LoRA", "full": "as whole differences, which are smaller"}
    if became:
        how = " and ".join(f"{n} {words[kind]}" for kind, n in sorted(became.items()))
        notify(Note(f"modules of {', '.join(sorted(kinds))} are written {how}"))


def _is_smaller_whole(terms: Sequence[Delta], rank: int) -> bool:
    """Say whether factors of a rank would be larger than ΔW, for kinds whose ranks multiply."""
    rows, columns = terms[0].flat_shape
    return any(term.facts.compact for term in terms) and rank * (rows + columns) >= rows * columns


def _quiet() -> AbstractContextManager[None]:
    """Silence numpy where what is not finite is found and named afterwards."""
    import numpy as np

    return np.errstate(over="ignore", invalid="ignore")


def _can_cut(terms: Sequence[Delta]) -> bool:
    """Say whether the sum is a matrix whose rank a rule may lower."""
    return len(terms[0].shape) > 1 and not any(t.needs_base for t in terms)


def _site(
    site: Site,
    terms: Sequence[Delta],
    rule: RankRule,
    chosen: Mapping[Site, int] | None,
    how: _How,
) -> Outcome:
    _same_shape(terms)
    only = terms[0] if len(terms) == 1 else None
    if not _can_cut(terms):
        return _uncut(site, terms)
    if only is not None and not rule.truncates:
        return _uncut(site, terms)
    dense = any(term.rank is None for term in terms)
    if dense and not rule.truncates:
        return _uncut(site, terms)
    decomposition = _decomposed(terms, how)
    energy, numerical = decomposition.energy, decomposition.rank
    before = None if dense else sum(term.rank or 0 for term in terms)
    kernel = math.prod(terms[0].shape[2:])
    if chosen is not None:
        k = min(chosen[site], numerical)
    else:
        k = site_rank(decomposition.singular_values, rule, kernel, numerical)
    lost = decomposition.lost(k) if k < numerical else 0.0
    if k == 0:
        return Outcome(site, None, before, energy, lost)
    if only is not None and only.rank is not None and k >= only.rank:
        return Outcome(site, only, before, energy, 0.0)  # nothing to cut: the factors stay
    if not rule.truncates and _is_smaller_whole(terms, k):
        return _uncut(site, terms)
    up, down = decomposition.truncate(k)
    return Outcome(site, LowRank.from_arrays(up, down, terms[0].shape), before, energy, lost)


def _uncut(site: Site, terms: Sequence[Delta]) -> Outcome:
    """Sum what cannot or need not be cut: vectors, dense differences, replacements."""
    if len(terms) == 1:
        _require_finite(*(t.numpy() for t in terms[0].stored().values() if is_float(t.dtype)))
        return Outcome(site, terms[0], terms[0].rank, math.nan, 0.0)
    if any(term.facts.replaces for term in terms):
        return Outcome(site, same_replacement(terms), None, math.nan, 0.0)
    role = "diff" if site.parameter == "weight" else "diff_b"
    return Outcome(site, sum_of_whole(terms, _dense_sum(terms), role), None, math.nan, 0.0)


def _same_shape(terms: Sequence[Delta]) -> None:
    flat = {term.flat_shape for term in terms}
    if len(flat) > 1:
        raise ShapeError(
            "the adapters' deltas differ in shape",
            expected="one shape",
            found=", ".join(str(list(term.shape)) for term in terms),
            hint="they were trained on different families, or on bases of different widths",
        )


def _decomposed(terms: Sequence[Delta], how: _How) -> Decomposition:
    """Decompose the sum of terms, checking that every input is finite."""
    import numpy as np

    if any(term.rank is None for term in terms):
        return decompose_dense(on_device(_dense_sum(terms), how.device))
    factors = [term.factors("float64") for term in terms]
    if len(factors) == 1:
        up, down = factors[0]
    else:
        up = np.concatenate([up for up, _ in factors], axis=1)
        down = np.concatenate([down for _, down in factors])
    _require_finite(up, down)
    return decompose(on_device(up, how.device), on_device(down, how.device), precise=how.precise)


def _dense_sum(terms: Sequence[Delta]) -> Any:
    """Return Σ ΔW, flattened to `(out, in·kh·kw)`, checking that it is finite."""
    total, *rest = (term.dense(dtype="float64").reshape(term.flat_shape) for term in terms)
    for one in rest:
        total = total + one
    _require_finite(total)
    return total


def _require_finite(*arrays: Any) -> None:
    import numpy as np

    for array in arrays:
        wide = array.astype("float32") if array.dtype.itemsize < 4 else array
        # a finite sum has finite parts; the sum of huge finite parts is checked in full
        if not np.isfinite(wide.sum()) and not np.isfinite(wide).all():
            raise NumericsError(
                "NaN or infinity in the input",
                hint="loramerge inspect --deep lists the modules that hold it",
            )


def _ranks_over_all(
    terms: Mapping[Site, Sequence[Delta]],
    rule: RankRule,
    sizes: SizeModel | None,
    how: _How,
    threads: int | None,
    notify: Notify,
) -> dict[Site, int]:
    """Choose ranks over all sites together, from their spectra."""
    cut = [site for site, deltas in terms.items() if _can_cut(deltas)]

    def spectrum(site: Site) -> tuple[list[float], int, float]:
        with naming(site), _quiet():
            _same_shape(terms[site])
            found = _decomposed(terms[site], how)
            kernel = math.prod(terms[site][0].shape[2:])
            s = to_numpy(found.singular_values)
            most = site_rank(s, rule, kernel, found.rank)
            return [float(v) ** 2 for v in s[:most]], most, found.energy

    spectra = list(ordered(spectrum, cut, threads=threads, task="spectra", notify=notify))
    itemsize = sizes.itemsize if sizes else 2
    candidates = [
        Candidate(
            energies,
            itemsize * sum(terms[site][0].flat_shape),
            sizes.first(site) if sizes else 0,
        )
        for site, (energies, _, _) in zip(cut, spectra, strict=True)
    ]
    if rule.max_size is not None:
        assert sizes is not None
        exact = sizes.exact

        def exact_size(ranks: Sequence[int]) -> int:
            return exact(dict(zip(cut, ranks, strict=True)))

        ranks = ranks_for_size(candidates, rule.max_size, exact_size)
    else:
        assert rule.max_error is not None
        energy = math.fsum(energy for _, _, energy in spectra)
        ranks = ranks_for_error(candidates, energy, rule.max_error)
    return dict(zip(cut, ranks, strict=True))
