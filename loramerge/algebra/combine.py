"""Sum deltas site by site, at the rank a rule allows. mix and resize are both this.

A site with one term and nothing to cut keeps its factors. Several low-rank terms are concatenated
and brought to their numerical rank; a term without a low-rank form makes the sum dense.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from loramerge.adapter import Adapter, Delta, Full, LowRank, Replacement, Site
from loramerge.adapter.sites import aligned, cut, for_dialect
from loramerge.algebra.arrays import on_device, to_numpy
from loramerge.algebra.ranks import (
    Candidate,
    RankRule,
    ranks_for_error,
    ranks_for_size,
    relative,
    site_rank,
)
from loramerge.algebra.svd import Decomposition, decompose, decompose_dense
from loramerge.algebra.weights import Weight
from loramerge.algebra.workers import ordered
from loramerge.dialects import Dialect
from loramerge.errors import AdapterError, LoramergeError, NumericsError, ShapeError
from loramerge.events import Note, Notify, ignore
from loramerge.files.dtypes import is_float
from loramerge.files.tensors import ArrayTensor

__all__ = [
    "Combined",
    "Outcome",
    "SizeModel",
    "combine",
    "naming",
    "require_base_free",
    "terms_of",
    "uncut",
    "weighed",
]


@dataclass(frozen=True)
class SizeModel:
    """What a file of given ranks weighs.

    Args:
        exact: function of site → rank that gives the file's exact bytes (sites left out: absent).
        itemsize: bytes per element of the factors.
        first: function of a site that estimates what its first direction costs beside its elements.
    """

    exact: Callable[[Mapping[Site, int]], int]
    itemsize: int
    first: Callable[[Site], int]


@dataclass(frozen=True)
class Outcome:
    """What became of one site.

    Args:
        delta: the result, or None where nothing is left (rank 0).
        rank_before: rank of the terms together; None for dense and vector deltas.
        energy: ‖ΔW‖_F² of the exact sum; lost: ‖ΔW − result‖_F². Both are nan where nothing was cut
            and no norm was needed.
    """

    site: Site
    delta: Delta | None
    rank_before: int | None
    energy: float
    lost: float

    @property
    def rank_after(self) -> int | None:
        """Rank of the result."""
        return 0 if self.delta is None else self.delta.rank

    @property
    def relative_error(self) -> float:
        """√(lost / energy)."""
        return 0.0 if self.lost == 0 else relative(self.lost, self.energy)


@dataclass(frozen=True)
class Combined:
    """The outcome of every site, and the figures over all."""

    outcomes: tuple[Outcome, ...]

    @property
    def deltas(self) -> dict[Site, Delta]:
        """The sites that are left."""
        return {o.site: o.delta for o in self.outcomes if o.delta is not None}

    @property
    def lossy(self) -> bool:
        """Whether anything was cut."""
        return any(o.lost > 0 for o in self.outcomes)

    @property
    def relative_error(self) -> float:
        """√(Σ lost / Σ energy) over the sites whose energy is known."""
        known = [o for o in self.outcomes if not math.isnan(o.energy)]
        return relative(math.fsum(o.lost for o in known), math.fsum(o.energy for o in known))

    @property
    def norm_kept(self) -> float:
        """√(1 − error²), which kohya calls Frobenius norm retention."""
        return math.sqrt(max(0.0, 1.0 - self.relative_error**2))

    @property
    def worst(self) -> tuple[str, float] | None:
        """The site of the largest relative error, and that error."""
        cut = [o for o in self.outcomes if o.lost > 0]
        if not cut:
            return None
        most = max(cut, key=lambda o: o.relative_error)
        return most.site.name, most.relative_error

    @property
    def left_out(self) -> list[str]:
        """Names of the sites of rank 0."""
        return [o.site.name for o in self.outcomes if o.delta is None]


@dataclass(frozen=True)
class _How:
    """Where and how carefully decompositions are computed."""

    device: str | None
    precise: bool


def uncut(adapter: Adapter) -> Combined:
    """Return the outcome of a sum that was made elsewhere and of which nothing was cut."""
    return Combined(
        tuple(
            Outcome(site, delta, delta.rank, math.nan, 0.0)
            for site, delta in adapter.deltas.items()
        )
    )


def terms_of(
    inputs: Sequence[tuple[Adapter, Weight]], target: Dialect | None = None
) -> dict[Site, list[Delta]]:
    """Return site → weighted deltas to add; a weight of 0 removes an adapter from a site.

    Args:
        target: the dialect that will be written, whose sites count; None for the finest of the
            inputs'.

    Raises:
        UnsupportedKind, ShapeError: if a delta cannot be brought to the sites of the others.
    """
    terms: dict[Site, list[Delta]] = {}
    adapters = [weighed(adapter, weight) for adapter, weight in inputs]
    if target is not None:
        adapters = [for_dialect(adapter, target) for adapter in adapters]
    for adapter in aligned(adapters):
        for site, delta in adapter.deltas.items():
            terms.setdefault(site, []).append(delta)
    return terms


def require_base_free(inputs: Sequence[tuple[Adapter, Weight]], rule: RankRule) -> None:
    """Refuse kinds that depend on the base where more is asked than carrying them along.

    Replacements are apart: equal ones can be mixed.

    Raises:
        AdapterError: naming file, module and kind.
    """
    uses: Counter[Site] = Counter()
    for adapter, weight in inputs:
        of = weight.on(adapter)
        uses.update(site for site in adapter.deltas if of(site) != 0.0)
    for adapter, weight in inputs:
        of = weight.on(adapter)
        for site, delta in adapter.deltas.items():
            w = of(site)
            if not delta.needs_base or isinstance(delta, Replacement) or w == 0.0:
                continue
            if rule.truncates or uses[site] > 1 or (w != 1.0 and not delta.weighs):
                raise AdapterError(
                    f"what a {delta.kind} delta changes depends on the base, so without the base "
                    "it cannot be added to others, weighted or re-ranked",
                    file=adapter.info.path,
                    module=site.name,
                    found=f"kind {delta.kind}",
                    hint="give the base it is for: --base B",
                )


def weighed(adapter: Adapter, weight: Weight) -> Adapter:
    """Return the adapter multiplied by a weight; sites of weight 0 are left out.

    A fused delta is cut where the weights of its modules differ.
    """
    of = weight.on(adapter)
    deltas: dict[Site, Delta] = {}
    for site, delta in adapter.deltas.items():
        alone = [Site((module,), site.parameter) for module in site.modules]
        weights = {one: of(one) for one in alone}
        with naming(site, adapter.info.path):
            if len(set(weights.values())) == 1:
                weights = {site: of(alone[0])}
            for part, piece in cut(site, delta, list(weights)):
                w = weights[part]
                if w != 0.0:
                    deltas[part] = piece if w == 1.0 else piece.scaled(w)
    if len(deltas) == len(adapter.deltas) and all(
        delta is adapter.deltas.get(site) for site, delta in deltas.items()
    ):
        return adapter
    return adapter.with_deltas(deltas, dtype=adapter.info.dtype)


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
        other = {term.kind for term in terms[outcome.site]} & _PRODUCTS
        if outcome.delta is not None and other and outcome.delta.kind not in other:
            kinds |= other
            became[outcome.delta.kind] += 1
    words = {"lora": "as plain LoRA", "full": "as whole differences, which are smaller"}
    if became:
        how = " and ".join(f"{n} {words[kind]}" for kind, n in sorted(became.items()))
        notify(Note(f"modules of {', '.join(sorted(kinds))} are written {how}"))


# kinds with exact low-rank forms, or none, that are not those of a LoRA
_PRODUCTS = frozenset({"loha", "lokr", "sparse-bias"})


def _is_smaller_whole(terms: Sequence[Delta], rank: int) -> bool:
    """Say whether factors of a rank would be larger than ΔW, for kinds whose ranks multiply."""
    rows, columns = terms[0].flat_shape
    return (
        any(term.kind in _PRODUCTS for term in terms) and rank * (rows + columns) >= rows * columns
    )


@contextmanager
def naming(site: Site, file: str | None = None) -> Iterator[None]:
    """Add the site's name, and the file if it is known, to errors that pass."""
    try:
        yield
    except LoramergeError as error:
        error.module = error.module or site.name
        error.file = error.file or file
        raise


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
    if any(isinstance(term, Replacement) for term in terms):
        return Outcome(site, _same_replacement(terms), None, math.nan, 0.0)
    total = _dense_sum(terms)
    shape = max((term.shape for term in terms), key=len)  # a kernel some factors hide
    full = next((term for term in terms if isinstance(term, Full)), None)
    if full is None:
        role = "diff" if site.parameter == "weight" else "diff_b"
        full = Full.of(ArrayTensor(total.reshape(shape)), role)
    return Outcome(site, full.with_array(total), None, math.nan, 0.0)


def _same_replacement(terms: Sequence[Delta]) -> Delta:
    first = terms[0]
    same = all(
        isinstance(term, Replacement)
        and isinstance(first, Replacement)
        and term.weight == 1.0
        and bytes(term.value.raw()) == bytes(first.value.raw())
        for term in terms
    )
    if not same:
        raise AdapterError(
            "replacement tensors cannot be mixed unless they are equal",
            hint="bake the adapters one after the other, or drop this module from one of them",
        )
    return first


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
