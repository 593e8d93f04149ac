"""Combine the terms of every site by a method, at the ranks that a rule allows.

`mix`, `resize` and `convert` all use it. A site with one term and nothing to cut keeps its factors;
several low-rank terms of a sum are brought to their numerical rank; a term without a low-rank form
makes the result dense.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from loramerge.adapter import LowRank, Site
from loramerge.adapter.kinds.full import sum_of_whole
from loramerge.adapter.kinds.replacement import same_replacement
from loramerge.algebra.arrays import to_numpy
from loramerge.algebra.budget import SiteSpectrum, choose_ranks
from loramerge.algebra.matrices import require_finite
from loramerge.algebra.merged import Merged, Sum
from loramerge.algebra.method import Method
from loramerge.algebra.operators.linear import OPERATOR as LINEAR
from loramerge.algebra.outcome import Combined, SiteOutcome, SizeModel
from loramerge.algebra.ranks import RankRule, site_rank
from loramerge.algebra.spaces import merge_terms
from loramerge.algebra.svd import Decomposition
from loramerge.algebra.terms import Term, naming
from loramerge.algebra.workers import ordered
from loramerge.errors import ShapeError
from loramerge.events import Note, Notify, ignore
from loramerge.files.dtypes import is_float

__all__ = ["SUM", "combine"]

SUM = Method.of(LINEAR)


@dataclass(frozen=True)
class _Work:
    """The method, rule and precision of a combination.

    Args:
        device: torch device, or None for numpy.
        precise: decompose without Gram matrices.
    """

    method: Method
    rule: RankRule
    device: str | None
    precise: bool

    def merge(self, site: Site, terms: Sequence[Term]) -> Merged:
        return merge_terms(site.name, terms, self.method.at(site))

    def decompose(self, merged: Merged) -> Decomposition:
        return merged.decompose(self.device, precise=self.precise)

    def rank(self, terms: Sequence[Term], found: Decomposition) -> int:
        """Return the rank that a site keeps where none is chosen over all sites together."""
        most = found.rank
        if not self.rule.truncates:
            most = min(most, _rank_of(self.method, terms))
        kernel = math.prod(terms[0].delta.shape[2:])
        return site_rank(to_numpy(found.singular_values), self.rule, kernel, most)


def _rank_of(method: Method, terms: Sequence[Term]) -> int:
    shape = terms[0].delta.flat_shape
    ranks = [min(shape) if t.delta.rank is None else t.delta.rank for t in terms]
    return method.operator.rank_of(ranks, shape)


def combine(
    terms: Mapping[Site, Sequence[Term]],
    rule: RankRule,
    *,
    method: Method = SUM,
    sizes: SizeModel | None = None,
    device: str | None = None,
    precise: bool = False,
    threads: int | None = None,
    task: str = "",
    notify: Notify = ignore,
) -> Combined:
    """Combine the terms of every site and cut the results by a rule.

    Vectors (biases, norms) and deltas that depend on the base are added with every method.

    Args:
        terms: site → terms; none may be empty.
        sizes: needed where the rule has `max_size`.
        device: torch device, or None for numpy.
        precise: decompose without Gram matrices, for float64 output.

    Raises:
        ShapeError: if the terms of a site differ in shape.
        NumericsError: if an input holds NaN or infinity.
        UsageError: if a third-party operator fails.
    """
    work = _Work(method, rule, device, precise)
    chosen: dict[Site, int] | None = None
    if rule.max_size is not None or rule.error_chooses:
        chosen = _ranks_over_all(terms, work, sizes, threads, notify)

    def one(site: Site) -> SiteOutcome:
        with naming(site), _quiet():
            return _site(site, terms[site], work, None if chosen is None else chosen.get(site))

    combined = Combined(tuple(ordered(one, terms, threads=threads, task=task, notify=notify)))
    _note_changed_kinds(terms, combined, notify)
    return combined


def _note_changed_kinds(
    terms: Mapping[Site, Sequence[Term]], combined: Combined, notify: Notify
) -> None:
    """Note which modules of other kinds than LoRA were written as another kind."""
    became: Counter[str] = Counter()
    kinds: set[str] = set()
    for outcome in combined.outcomes:
        other = {term.delta.kind for term in terms[outcome.site] if term.delta.facts.compact}
        if outcome.delta is not None and other and outcome.delta.kind not in other:
            kinds |= other
            became[outcome.delta.kind] += 1
    words = {"lora": "as plain LoRA", "full": "as full differences, which are smaller"}
    if became:
        parts = " and ".join(f"{n} {words[kind]}" for kind, n in sorted(became.items()))
        notify(Note(f"modules of kind {', '.join(sorted(kinds))} are written {parts}"))


def _is_smaller_dense(terms: Sequence[Term], rank: int) -> bool:
    """Return whether factors of a rank would be larger than ΔW, for kinds whose ranks multiply."""
    rows, columns = terms[0].delta.flat_shape
    compact = any(term.delta.facts.compact for term in terms)
    return compact and rank * (rows + columns) >= rows * columns


def _quiet() -> AbstractContextManager[None]:
    """Silence numpy where values that are not finite are found and named afterwards."""
    import numpy as np

    return np.errstate(over="ignore", invalid="ignore")


def _can_cut(terms: Sequence[Term]) -> bool:
    """Return whether the result is a matrix, whose rank a rule may lower."""
    return len(terms[0].delta.shape) > 1 and not any(t.delta.needs_base for t in terms)


def _site(site: Site, terms: Sequence[Term], work: _Work, chosen: int | None) -> SiteOutcome:
    _require_same_shape(terms)
    if not _can_cut(terms):
        scale = work.method.scale
        if isinstance(scale, float):
            terms = [replace(term, weight=scale * term.weight) for term in terms]
        return _uncut(site, terms, Sum([term.weighted for term in terms]))
    merged = work.merge(site, terms)
    truncates = work.rule.truncates
    if not truncates and (merged.only is not None or not merged.factored):
        return _uncut(site, terms, merged)
    found = work.decompose(merged)
    before = None
    if all(term.delta.rank is not None for term in terms):
        before = sum(term.delta.rank or 0 for term in terms)
    rank = work.rank(terms, found) if chosen is None else min(chosen, found.rank)
    lost = found.lost(rank) if rank < found.rank else 0.0
    if rank == 0:
        return SiteOutcome(site, None, before, found.energy, lost, merged.applied)
    only = merged.only
    if only is not None and only.rank is not None and rank >= only.rank:
        # nothing to cut: the factors stay
        return SiteOutcome(site, only, before, found.energy, 0.0, merged.applied)
    if not truncates and _is_smaller_dense(terms, rank):
        return _uncut(site, terms, merged)
    up, down = found.truncate(rank)
    delta = LowRank.from_arrays(up, down, terms[0].delta.shape)
    return SiteOutcome(site, delta, before, found.energy, lost, merged.applied)


def _uncut(site: Site, terms: Sequence[Term], merged: Merged) -> SiteOutcome:
    """Return a result that cannot or need not be cut: a vector, a dense difference, a replacement."""
    only = merged.only
    if only is not None:
        require_finite(*(t.numpy() for t in only.stored().values() if is_float(t.dtype)))
        return SiteOutcome(site, only, only.rank, math.nan, 0.0, merged.applied)
    deltas = [term.weighted for term in terms]
    if any(delta.facts.replaces for delta in deltas):
        return SiteOutcome(site, same_replacement(deltas), None, math.nan, 0.0)
    role = "diff" if site.parameter == "weight" else "diff_b"
    whole = sum_of_whole(deltas, merged.dense(), role)
    return SiteOutcome(site, whole, None, math.nan, 0.0, merged.applied)


def _require_same_shape(terms: Sequence[Term]) -> None:
    flat = {term.delta.flat_shape for term in terms}
    if len(flat) > 1:
        raise ShapeError(
            "the adapters' deltas differ in shape",
            expected="one shape",
            found=", ".join(str(list(term.delta.shape)) for term in terms),
            hint="they were trained on different families, or on bases of different widths",
        )


def _ranks_over_all(
    terms: Mapping[Site, Sequence[Term]],
    work: _Work,
    sizes: SizeModel | None,
    threads: int | None,
    notify: Notify,
) -> dict[Site, int]:
    """Choose ranks over all sites together, from their spectra."""
    rule = work.rule
    cut = [site for site, found in terms.items() if _can_cut(found)]

    def spectrum(site: Site) -> tuple[list[float], int, float]:
        with naming(site), _quiet():
            _require_same_shape(terms[site])
            found = work.decompose(work.merge(site, terms[site]))
            most = work.rank(terms[site], found)
            s = to_numpy(found.singular_values)
            return [float(v) ** 2 for v in s[:most]], most, found.energy

    spectra = list(ordered(spectrum, cut, threads=threads, task="spectra", notify=notify))
    seen = [
        SiteSpectrum(site, terms[site][0].delta.flat_shape, energies, energy)
        for site, (energies, _, energy) in zip(cut, spectra, strict=True)
    ]
    return choose_ranks(seen, rule, sizes)
