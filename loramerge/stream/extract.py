"""Extract an adapter from two checkpoints, one module at a time for each thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loramerge.adapter import Delta, Full, Site
from loramerge.algebra.budget import Cut, SiteSpectrum, choose_ranks
from loramerge.algebra.extract import Change, Extracted, Extractor
from loramerge.algebra.outcome import Combined, SiteOutcome, SizeModel, held
from loramerge.algebra.ranks import RankRule, check_errors, relative
from loramerge.algebra.terms import naming
from loramerge.algebra.workers import ordered, steady_heap
from loramerge.errors import NumericsError, Setting
from loramerge.events import Notify, ignore
from loramerge.files.dtypes import DTYPES
from loramerge.files.spool import Keep, in_memory
from loramerge.files.tensors import ComputedTensor
from loramerge.stream.differences import energy_of, read_change
from loramerge.stream.pairing import PairedSite, Sort
from loramerge.stream.walk import Buffers

__all__ = ["Extraction", "extract", "whole_difference"]

Sizes = Callable[[Mapping[Site, Delta]], SizeModel]


@dataclass
class Extraction:
    """The deltas of two checkpoints, and figures on what they leave out.

    Args:
        deltas: what the adapter holds.
        outcomes: of the matrices that were cut.
        unchanged: number of parameters that are equal.
        rounding: names of sites in which there is nothing but rounding.
        types: words of the types that explain it.
        energies: sort → ‖difference‖² of what was not asked for.
        counts: sort → number of such parameters.
        total, kept: ‖difference‖² of all that differs by more than rounding, and what is kept of it.
    """

    deltas: dict[Site, Delta] = field(default_factory=dict)
    outcomes: list[SiteOutcome] = field(default_factory=list)
    unchanged: int = 0
    rounding: list[str] = field(default_factory=list)
    types: set[str] = field(default_factory=set)
    energies: dict[Sort, float] = field(default_factory=dict)
    counts: Counter[Sort] = field(default_factory=Counter)
    total: float = 0.0
    kept: float = 0.0

    @property
    def combined(self) -> Combined:
        """The figures over all matrices."""
        return Combined(tuple(self.outcomes))

    @property
    def captured(self) -> float:
        """The share of ‖difference‖² that the adapter holds."""
        return self.kept / self.total if self.total > 0.0 else 1.0

    def nothing(self, count: int, types: Collection[str]) -> None:
        """Note a site without a change, of so many parameters; `types` are those of rounding."""
        self.unchanged += count
        self.types |= {DTYPES[name].word for name in types}


def whole_difference(group: PairedSite, dtype: str) -> Full:
    """Return the exact difference of a site, which is read when it is needed.

    Args:
        dtype: safetensors name of its type, F32 or F64.
    """
    kind = DTYPES[dtype].numpy
    assert kind is not None

    def make() -> Any:
        import numpy as np

        found = read_change(group, kind, noise=False).matrix
        return np.zeros(group.shape, kind) if found is None else found.reshape(group.shape)

    role = "diff_b" if group.site.parameter == "bias" else "diff"
    return Full.of(ComputedTensor(dtype, group.shape, make), role)


def extract(
    groups: Sequence[PairedSite],
    rule: RankRule,
    sorts: Collection[Sort],
    *,
    whole: bool = False,
    keep_rounding: bool = False,
    sizes: Sizes | None = None,
    dtype: str = "F32",
    threads: int | None = None,
    keep: Keep = in_memory,
    notify: Notify = ignore,
) -> Extraction:
    """Return the deltas that turn the base into the tuned checkpoint, cut by a rule.

    Args:
        rule: for matrices; ignored where `whole`.
        sorts: what the adapter shall hold beside matrices, as exact differences.
        whole: matrices as exact differences, too; then rounding is kept.
        keep_rounding: keep also what may be rounding to the types of the checkpoints.
        sizes: gives the size model of sites, for `max_size`.
        dtype: safetensors name of the type of exact differences and of the computation, F32 or F64.
        keep: holds the tensors of the result until they are written.

    Raises:
        NumericsError: if weights hold NaN or infinity, or an error limit is exceeded.
    """
    steady_heap()
    found = Extraction()
    precise = dtype == "F64"
    cut = [] if whole else [group for group in groups if group.sort == "matrix"]
    rest = [group for group in groups if whole or group.sort != "matrix"]
    wanted = {"matrix", *sorts} if whole else set(sorts)
    energies = ordered(_named(energy_of), rest, threads=threads, task="comparing", notify=notify)
    for group, (energy, within) in zip(rest, energies, strict=True):
        if energy == 0.0:
            found.nothing(len(group.pairs), ())
        elif within and not (whole or keep_rounding):
            found.rounding.append(group.site.name)
        else:
            found.total += energy
            if group.sort in wanted:
                found.kept += energy
                found.deltas[group.site] = whole_difference(group, dtype)
            else:
                found.energies[group.sort] = found.energies.get(group.sort, 0.0) + energy
                found.counts[group.sort] += len(group.pairs)
    if cut:
        extractor = _extractor(rule, sizes, keep_rounding=keep_rounding, precise=precise)
        work = _Cutting(extractor, "float64" if precise else "float32", threads, keep, notify)
        _add_matrices(found, work, cut, sizes)
        check_errors(rule, found.combined.relative_error, found.combined.worst)
    order = {group.site: index for index, group in enumerate(groups)}
    found.deltas = dict(sorted(found.deltas.items(), key=lambda item: order[item[0]]))
    return found


def _extractor(
    rule: RankRule, sizes: Sizes | None, *, keep_rounding: bool, precise: bool
) -> Extractor:
    """Return what cuts single sites; a budget bounds the rank of each."""
    if rule.max_size is None or sizes is None:
        return Extractor(rule, keep_rounding, precise)
    budget, itemsize = rule.max_size, sizes({}).itemsize
    return Extractor(
        rule, keep_rounding, precise, lambda shape: budget // (itemsize * sum(shape)) + 1
    )


@dataclass(frozen=True)
class _Cutting:
    """The way in which sites are read and cut."""

    extractor: Extractor
    kind: str
    threads: int | None
    keep: Keep
    notify: Notify
    buffers: Buffers = field(default_factory=Buffers)

    def change(self, group: PairedSite) -> Change:
        noise = not self.extractor.keep_rounding
        return read_change(group, self.kind, noise=noise, buffers=self.buffers)


def _add_matrices(
    found: Extraction, work: _Cutting, cut: Sequence[PairedSite], sizes: Sizes | None
) -> None:
    rule = work.extractor.rule
    chosen: dict[Site, int] | None = None
    if rule.max_size is not None or rule.error_chooses:
        cut, chosen = _chosen(found, work, cut, sizes)

    def one(group: PairedSite) -> Extracted:
        rank = None if chosen is None else chosen[group.site]
        return work.extractor.extract(group.site, group.shape, work.change(group), rank)

    done = ordered(_named(one), cut, threads=work.threads, task="extracting", notify=work.notify)
    for group, outcome in zip(cut, done, strict=True):
        if outcome.result is None:
            _add_nothing(found, group, outcome.status, outcome.types)
            continue
        (result,) = held([outcome.result], work.keep)
        found.outcomes.append(result)
        found.total += result.energy
        found.kept += max(0.0, result.energy - result.lost)
        if result.delta is not None:
            found.deltas[group.site] = result.delta


def _add_nothing(found: Extraction, group: PairedSite, status: str, types: frozenset[str]) -> None:
    if status == "unchanged":
        found.nothing(len(group.pairs), ())
    else:
        found.rounding.append(group.site.name)
        found.types |= {DTYPES[name].word for name in types}


def _chosen(
    found: Extraction, work: _Cutting, cut: Sequence[PairedSite], sizes: Sizes | None
) -> tuple[list[PairedSite], dict[Site, int]]:
    """Return the sites that have changed, and the rank of each, chosen over all of them."""

    def one(group: PairedSite) -> tuple[str, frozenset[str], SiteSpectrum | None]:
        return work.extractor.spectrum(group.site, group.shape, work.change(group))

    changed, spectra = [], []
    seen = ordered(_named(one), cut, threads=work.threads, task="spectra", notify=work.notify)
    for group, (status, types, spectrum) in zip(cut, seen, strict=True):
        if spectrum is None:
            _add_nothing(found, group, status, types)
        else:
            changed.append(group)
            spectra.append(spectrum)
    rule = work.extractor.rule
    lost = sum(max(0.0, one.energy - sum(one.energies)) for one in spectra)
    energy = sum(one.energy for one in spectra)
    if rule.error_chooses:
        _require_reachable(rule, lost, energy)
    model = None
    if sizes is not None and rule.max_size is not None:
        shapes: dict[Site, Delta] = {
            group.site: whole_difference(group, "F32") for group in changed
        }
        model = sizes(found.deltas | shapes)
    return changed, choose_ranks(spectra, Cut(rule, model), lost=lost)


def _require_reachable(rule: RankRule, lost: float, energy: float) -> None:
    limit = rule.max_error or 1.0
    if relative(lost, energy) > limit * (1 + 1e-9):
        raise NumericsError(
            "rounding to the checkpoints' types is a larger part of the difference than the error "
            "that is allowed",
            expected=f"≤ {limit:g}",
            found=f"{relative(lost, energy):.4g}",
            hint=("allow a larger error, or keep rounding with ", Setting("keep_rounding", True)),
        )


def _named(work: Callable[[PairedSite], Any]) -> Callable[[PairedSite], Any]:
    """Return a function of a group whose errors name the site."""

    def run(group: PairedSite) -> Any:
        with naming(group.site):
            return work(group)

    return run
