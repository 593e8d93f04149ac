"""Combine the terms of every site by a method, at the ranks that a rule allows.

`mix`, `resize` and `convert` all use it. A site with one term and nothing to cut keeps its factors;
several low-rank terms of a sum are brought to their numerical rank; a term without a low-rank form
makes the result dense. Several rules cut the same decomposition.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from loramerge.adapter import Delta, LowRank, Site
from loramerge.adapter.kinds.full import sum_of_whole
from loramerge.adapter.kinds.replacement import same_replacement
from loramerge.algebra.arrays import Array, to_numpy
from loramerge.algebra.budget import Cut, SiteSpectrum, choose_ranks
from loramerge.algebra.matrices import require_finite
from loramerge.algebra.merged import Matrix, Merged, Sum
from loramerge.algebra.method import Method
from loramerge.algebra.operators.linear import OPERATOR as LINEAR
from loramerge.algebra.outcome import Combined, SiteOutcome, SizeModel, held
from loramerge.algebra.ranks import RankRule, site_rank
from loramerge.algebra.spaces import merge_terms, numbers_of
from loramerge.algebra.svd import Decomposition
from loramerge.algebra.terms import Term, naming
from loramerge.algebra.workers import ordered
from loramerge.errors import ShapeError
from loramerge.events import Note, Notify, ignore
from loramerge.files.dtypes import is_float
from loramerge.files.spool import Keep, in_memory

__all__ = [
    "SUM",
    "Work",
    "at_site",
    "can_cut",
    "combine",
    "combine_each",
    "has_rank",
    "note_changed_kinds",
    "quiet",
    "require_same_shape",
    "with_pool",
]

SUM = Method.of(LINEAR)


@dataclass(frozen=True)
class Work:
    """The method and precision of a combination.

    Args:
        device: torch device, or None for numpy.
        precise: decompose without Gram matrices.
    """

    method: Method
    device: str | None
    precise: bool

    def merge(self, site: Site, terms: Sequence[Term]) -> Merged:
        return merge_terms(site.name, terms, self.method.at(site))

    def decompose(self, merged: Merged, most: int | None = None) -> Decomposition:
        return merged.decompose(self.device, precise=self.precise, most=most)

    def most(self, merged: Merged, terms: Sequence[Term], rule: RankRule) -> int | None:
        """Return the rank that a site keeps at most; None if its spectrum decides, or costs nothing."""
        if self.device is not None or (merged.factored and not isinstance(merged, Matrix)):
            return None
        if not rule.truncates:
            return _rank_of(self.method, terms)
        if rule != RankRule(rank=rule.rank, conv_rank=rule.conv_rank):
            return None
        return rule.cap(math.prod(terms[0].delta.shape[2:]))

    def rank(self, site: Site, terms: Sequence[Term], found: Decomposition, cut: Cut) -> int:
        """Return the rank that a site keeps where none is chosen over all sites together."""
        most = found.rank
        if not cut.rule.truncates:
            most = min(most, _rank_of(self.method, terms))
        kernel = math.prod(terms[0].delta.shape[2:])
        values = to_numpy(found.singular_values)
        return site_rank(values, cut.rule, kernel, most, norm=cut.norm_of(site))


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
    keep: Keep = in_memory,
    notify: Notify = ignore,
) -> Combined:
    """Combine the terms of every site and cut the results by a rule.

    Vectors (biases, norms) and deltas that depend on the base are added with every method.

    Args:
        terms: site → terms; none may be empty.
        sizes: needed where the rule has `max_size`.
        device: torch device, or None for numpy.
        precise: decompose without Gram matrices, for float64 output.
        keep: holds the tensors of the result until they are written.

    Raises:
        ShapeError: if the terms of a site differ in shape.
        NumericsError: if an input holds NaN or infinity.
        UsageError: if a third-party operator fails.
    """
    (combined,) = combine_each(
        terms,
        [Cut(rule, sizes)],
        method=method,
        device=device,
        precise=precise,
        threads=threads,
        task=task,
        keep=keep,
        notify=notify,
    )
    return combined


def combine_each(
    terms: Mapping[Site, Sequence[Term]],
    cuts: Sequence[Cut],
    *,
    method: Method = SUM,
    device: str | None = None,
    precise: bool = False,
    threads: int | None = None,
    task: str = "",
    keep: Keep = in_memory,
    notify: Notify = ignore,
) -> list[Combined]:
    """Combine the terms of every site, and return the result of each cut; see `combine`.

    A site is decomposed as often as for a single cut: once, and once before that if any of them
    chooses ranks over all sites together. Only a large dense result is decomposed for each rank, as
    no more than its leading directions are computed.

    Args:
        keep: holds the tensors of results until they are written.
    """
    work = Work(with_pool(method, terms, threads, notify), device, precise)
    chosen = _ranks_over_all(terms, work, cuts, threads, notify)

    def one(site: Site) -> list[SiteOutcome]:
        with naming(site), quiet():
            ranks = [None if found is None else found.get(site) for found in chosen]
            return at_site(site, terms[site], work, cuts, ranks)

    done = ordered(one, terms, threads=threads, task=task, notify=notify)
    found = [held(outcomes, keep) for outcomes in done]
    combined = [Combined(tuple(outcomes)) for outcomes in zip(*found, strict=True)] or [
        Combined(()) for _ in cuts
    ]
    note_changed_kinds(terms, combined[0], notify)
    return combined


def note_changed_kinds(
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


def quiet() -> AbstractContextManager[None]:
    """Silence numpy where values that are not finite are found and named afterwards."""
    import numpy as np

    return np.errstate(over="ignore", invalid="ignore")


def can_cut(terms: Sequence[Term]) -> bool:
    """Return whether the result is a matrix, whose rank a rule may lower."""
    return len(terms[0].delta.shape) > 1 and not any(t.delta.needs_base for t in terms)


def has_rank(delta: Delta) -> bool:
    """Return whether a delta can have a rank: neither a vector nor a whole difference of one row.

    Modulation tables are of one row: factors of rank 1 would be larger, and say the same.
    """
    return len(delta.shape) > 1 and not (delta.facts.whole and min(delta.flat_shape) == 1)


def at_site(
    site: Site,
    terms: Sequence[Term],
    work: Work,
    cuts: Sequence[Cut],
    chosen: Sequence[int | None],
) -> list[SiteOutcome]:
    """Return the result of a site for each cut.

    Args:
        chosen: for each cut, the rank that was chosen over all sites together, None where none was.
    """
    require_same_shape(terms)
    if not can_cut(terms):
        scale = work.method.scale
        if isinstance(scale, float):
            terms = [replace(term, weight=scale * term.weight) for term in terms]
        return [_uncut(site, terms, Sum([term.weighted for term in terms]))] * len(cuts)
    merged = work.merge(site, terms)
    truncates = all(cut.rule.truncates for cut in cuts)
    if not truncates and (merged.only is not None or not merged.factored):
        return [_uncut(site, terms, merged)] * len(cuts)
    mosts = [work.most(merged, terms, cut.rule) for cut in cuts]
    founds = {most: work.decompose(merged, most) for most in dict.fromkeys(mosts)}
    before = None
    if all(term.delta.rank is not None for term in terms):
        before = sum(term.delta.rank or 0 for term in terms)
    only = merged.only

    def of_rank(most: int | None, rank: int) -> SiteOutcome:
        found = founds[most]
        lost = found.lost(rank) if rank < found.rank or found.rest > 0 else 0.0
        if rank == 0:
            return SiteOutcome(site, None, before, found.energy, lost, merged.applied)
        if only is not None and only.rank is not None and rank >= only.rank:
            # nothing to cut: the factors stay
            return SiteOutcome(site, only, before, found.energy, 0.0, merged.applied)
        if not any(has_rank(term.delta) for term in terms):
            return _uncut(site, terms, merged)
        if not truncates and _is_smaller_dense(terms, rank):
            return _uncut(site, terms, merged)
        up, down = found.truncate(rank)
        delta = LowRank.from_arrays(up, down, terms[0].delta.shape)
        return SiteOutcome(site, delta, before, found.energy, lost, merged.applied)

    ranks = [
        work.rank(site, terms, founds[most], cut) if rank is None else min(rank, founds[most].rank)
        for most, cut, rank in zip(mosts, cuts, chosen, strict=True)
    ]
    wanted = list(zip(mosts, ranks, strict=True))
    made = {one: of_rank(*one) for one in dict.fromkeys(wanted)}
    return [made[one] for one in wanted]


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


def require_same_shape(terms: Sequence[Term]) -> None:
    """Refuse terms of one site whose shapes differ.

    Raises:
        ShapeError: naming the shapes.
    """
    flat = {term.delta.flat_shape for term in terms}
    if len(flat) > 1:
        raise ShapeError(
            "the adapters' deltas differ in shape",
            expected="one shape",
            found=", ".join(str(list(term.delta.shape)) for term in terms),
            hint="they were trained on different families, or on bases of different widths",
        )


def with_pool(
    method: Method, terms: Mapping[Site, Sequence[Term]], threads: int | None, notify: Notify
) -> Method:
    """Return the method with what its operator makes of the numbers of all modules, if it asks."""
    import numpy as np

    pool = method.operator.pool
    if pool is None:
        return method
    several = [site for site, found in terms.items() if len(found) > 1 and can_cut(found)]

    def numbers(site: Site) -> Array:
        with naming(site), quiet():
            require_same_shape(terms[site])
            return numbers_of(terms[site], method.at(site))

    found = ordered(numbers, several, threads=threads, task="comparing", notify=notify)
    return replace(method, pooled=pool.reduce(np.concatenate([np.zeros(0), *found])))


def _ranks_over_all(
    terms: Mapping[Site, Sequence[Term]],
    work: Work,
    cuts: Sequence[Cut],
    threads: int | None,
    notify: Notify,
) -> list[dict[Site, int] | None]:
    """Choose ranks over all sites together, for each cut that does so, from one set of spectra."""
    wanted = [cut for cut in cuts if cut.over_all]
    if not wanted:
        return [None for _ in cuts]
    sites = [site for site, found in terms.items() if can_cut(found)]

    def spectra(site: Site) -> list[SiteSpectrum]:
        with naming(site), quiet():
            require_same_shape(terms[site])
            found = work.decompose(work.merge(site, terms[site]))
            s = to_numpy(found.singular_values)
            energies = [float(v) ** 2 for v in s[: found.rank]]
            shape = terms[site][0].delta.flat_shape
            return [
                SiteSpectrum(
                    site, shape, energies[: work.rank(site, terms[site], found, cut)], found.energy
                )
                for cut in wanted
            ]

    found = list(ordered(spectra, sites, threads=threads, task="spectra", notify=notify))
    rows = iter(zip(*found, strict=True) if found else [() for _ in wanted])
    return [choose_ranks(next(rows), cut) if cut.over_all else None for cut in cuts]
