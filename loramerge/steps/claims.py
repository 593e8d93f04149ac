"""Claims on the adapters that a checkpoint holds, at stated strengths or any, and how they hold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loramerge.adapter import Adapter
from loramerge.algebra.presence import (
    CLOSE,
    Fault,
    Total,
    Trace,
    alien,
    common_strengths,
    fault_of,
    totals,
)
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import Checkpoint
from loramerge.errors import NumericsError
from loramerge.families.beside import VAE
from loramerge.steps.parameters import Context
from loramerge.stream.gaps import AVERAGE, OTHER, Likeness
from loramerge.stream.likeness import likeness
from loramerge.stream.presence import Presence, presence, rounded_anew, sampled

__all__ = ["CheckpointContents", "Claim", "FoundAdapter", "contents_of"]

_MOST = 0.5  # share of an adapter's energy whose modules agree, if it is in a checkpoint
_BESIDE = (VAE, AVERAGE, OTHER)  # parts beside the networks
_TELLING = 0.5  # of a share: a module whose share may be further off by chance says nothing
_FEW = 4  # modules from which on one strength in all of them is no chance
_STEPS = 12  # in the search of a strength that rounding hides
_FURTHEST = 64.0  # times the strength that is left after rounding
_LIKE_NEAREST = (
    1.05  # times the energy that rounding to nearest loses, beyond which it was another way
)


@dataclass(frozen=True)
class Claim:
    """An adapter that should be in a checkpoint.

    Args:
        label: its name without folders.
        stated: whether it should be there at this weight; else at any.
    """

    adapter: Adapter
    label: str
    weight: Weight
    stated: bool


@dataclass(frozen=True)
class FoundAdapter:
    """One of the claimed adapters, as it was found.

    Args:
        factor: of the claimed weight; None where it is not there, or is too much like others.
        blocks: block → strength there, as a factor of the claimed weight.
        modules: number of its modules that were measured.
        sound: of those that hold it as they should.
        told: whether it can be told from the other adapters.
        nothing: whether it changes nothing, as all of its modules are exactly zero.
        drowned: norm of what is unexplained in its modules, relative to that of its change, where this
            is too much to tell whether the adapter is there; None where it can be told.
    """

    claim: Claim
    factor: float | None
    blocks: dict[str, Total]
    modules: int
    sound: int
    told: bool = True
    nothing: bool = False
    drowned: float | None = None

    @property
    def strength(self) -> float | None:
        """The weight at which it is there; None where weights differ by module, or it is not there."""
        if self.factor is None or not self.claim.weight.plain:
            return None
        return self.factor * self.claim.weight.default

    @property
    def holds(self) -> bool:
        """True if it is there as a whole, and at the stated weight, or changes nothing."""
        if self.nothing or self.drowned is not None:
            return self.nothing
        right = not self.claim.stated or self.factor == 1.0
        return self.factor is not None and right and self.sound == self.modules


@dataclass
class CheckpointContents:
    """Adapters in a checkpoint, compared with claims.

    Args:
        faults: modules that do not hold what most of the others do.
        kept: share of all changes that is there, by the products with them; expected: what rounding
            to the type of the checkpoint leaves; both of the whole.
        rest: norm of what the adapters do not explain, in the modules that they change, relative to
            the norm of the whole change there; rounding: what rounding explains of that.
        missing: modules that the checkpoint or the base lacks.
        elsewhere: the comparison of all other tensors with the base.
        hidden: number of modules in which rounding leaves less than half of the change.
        types: in which the checkpoint stores these modules.
        beside: see `contents_of`.
    """

    found: list[FoundAdapter]
    faults: list[Fault]
    kept: float | None
    expected: float | None
    rest: float
    rounding: float
    missing: list[str]
    elsewhere: Likeness
    hidden: int = 0
    types: list[str] = field(default_factory=list)
    beside: bool = True

    @property
    def others(self) -> dict[str, int]:
        """Part → number of tensors that no adapter changes and that differ from the base."""
        parts = self.elsewhere.parts.items()
        own = {name: n for name, gap in parts if (n := gap.differing - gap.rounded)}
        return own if self.beside else {n: one for n, one in own.items() if n not in _BESIDE}

    @property
    def lacking(self) -> list[str]:
        """Names of tensors that only one of the two has, or in another shape."""
        one_side = (self.elsewhere.only_a, self.elsewhere.only_b)
        skipped = (OTHER,) if self.beside else _BESIDE
        names = [
            name
            for those in one_side
            for part, some in those.items()
            if part not in skipped
            for name in some
        ]
        return [*names, *self.elsewhere.misfits, *self.elsewhere.unreadable]

    @property
    def holds(self) -> bool:
        """True if every claim holds, and nothing else differs where all weights are stated."""
        return all(one.holds for one in self.found) and self._nothing_else

    @property
    def unclear(self) -> bool:
        """True if nothing contradicts the claims, but rounding drowns an adapter."""
        drowned = any(one.drowned is not None for one in self.found)
        rest = all(one.holds or one.drowned is not None for one in self.found)
        return drowned and rest and self._nothing_else and not self.missing

    @property
    def _nothing_else(self) -> bool:
        whole = all(one.claim.stated for one in self.found)
        return not self.faults and (not (self.others or self.lacking) or not whole)


def contents_of(
    checkpoint: Checkpoint,
    base: Checkpoint,
    claims: Sequence[Claim],
    context: Context,
    *,
    beside: bool = True,
) -> CheckpointContents:
    """Find the adapters in a checkpoint.

    Args:
        beside: whether the VAE, and other tensors beside the networks, should be those of the base.

    Raises:
        NumericsError: if an adapter holds NaN or infinity.
        LoramergeError: see `stream.presence.presence`.
    """
    settings: dict[str, Any] = {"threads": context.threads, "notify": context.notify}
    first = presence(checkpoint, base, [(one.adapter, one.weight) for one in claims], **settings)
    _require_finite(first, claims)
    claimed = Counter(number for trace in first.traces for number in trace.terms)
    first = replace(first, traces=[trace.changing() for trace in first.traces])
    factors, told, traces = _strengths(first, base, claims, context)
    faults = {id(trace): fault for trace in traces if (fault := fault_of(trace)) is not None}
    found = []
    for number, claim in enumerate(claims):
        own = [trace for trace in traces if number in trace.terms]
        telling = [trace for trace in own if trace.spread < _TELLING]
        few = len(telling) < _FEW
        agreeing = [t for t in telling if _agrees(t, number, faults.get(id(t)), few=few)]
        most = _energy(agreeing, number) > _MOST * _energy(telling, number)
        there = most if telling else factors[number] == 1.0  # which nothing contradicts
        blocks = totals(first.traces, number)
        count = sum(number in trace.terms for trace in first.traces)
        factor = factors[number] if there else None
        sound = sum(id(trace) not in faults for trace in own)
        nothing = count == 0 < claimed[number]
        found.append(
            FoundAdapter(
                claim,
                None if nothing else factor,
                blocks,
                claimed[number] if nothing else count,
                sound,
                told[number] or nothing,
                nothing,
                _drowned(first.traces, number, len(claims)),
            )
        )
    absent = {number for number, one in enumerate(found) if one.factor is None}
    finite = [trace for trace in traces if math.isfinite(trace.moved)]
    relevant = [trace for trace in finite if set(trace.terms) - absent]
    asked = math.fsum(trace.asked for trace in relevant)
    moved = math.fsum(trace.moved for trace in first.traces)
    still = [fault for trace in first.traces if (fault := alien(trace)) is not None]
    whole = all(claim.stated for claim in claims)  # and so is everything else
    hidden = [t for t in relevant if t.kept is not None and abs(t.kept) < 0.5]
    return CheckpointContents(
        found,
        [
            *_not_finite(first),
            *(faults[id(trace)] for trace in relevant if id(trace) in faults),
            *(still if whole else ()),
        ],
        _share(math.fsum(float(t.along.sum()) for t in relevant), asked),
        _share(math.fsum(t.asked * (1.0 if t.kept is None else t.kept) for t in relevant), asked),
        _norm(_rest(first, traces), moved),
        _norm(math.fsum(trace.rounding for trace in first.traces), moved),
        first.missing,
        likeness(base, checkpoint, skip=first.touched, **settings),
        len(hidden),
        sorted(first.types),
        beside,
    )


def _not_finite(found: Presence) -> list[Fault]:
    """Return the faults of modules with NaN or infinity, also of adapters that are not there."""
    odd = (trace for trace in found.traces if not math.isfinite(trace.moved))
    return [fault for trace in odd if (fault := fault_of(trace)) is not None]


def _require_finite(found: Presence, claims: Sequence[Claim]) -> None:
    """Refuse adapters that nothing can be compared with; what a checkpoint holds is told instead."""
    for trace in found.traces:
        for place, number in enumerate(trace.terms):
            if not math.isfinite(trace.gram[place, place]):
                raise NumericsError(
                    "the change of the adapter holds NaN or infinity",
                    file=claims[number].adapter.label,
                    module=trace.module,
                )


def _agrees(trace: Trace, number: int, fault: Fault | None, *, few: bool) -> bool:
    """Return whether an adapter has in a module the strength that it has in the others.

    Args:
        few: whether they are so few that one strength may be chance; then it must explain the change.
    """
    if fault is None or fault.sort != "other" or number in dict(fault.off):
        return fault is None
    return not few or _unexplained(trace) < trace.moved / 2


def _drowned(traces: Sequence[Trace], number: int, claims: int) -> float | None:
    """Return how much larger than an adapter's change is what is unexplained, if that hides the adapter.

    It does if rounding is larger, and if most of the change lies in modules whose share says nothing: in
    a large module many numbers tell a strength that is far below their rounding.

    Args:
        traces: at the claimed weights. The strength that was found says nothing here: that of an
            adapter in whose place there is another one is small.
        number: of the adapter among the claims.
    """
    own = [trace for trace in traces if number in trace.terms]
    alone = [trace.scaled([float(n == number) for n in range(claims)]) for trace in own]
    change = math.fsum(trace.asked for trace in alone)
    told = math.fsum(trace.asked for trace in alone if trace.spread < _TELLING)
    if not 0 < change < math.fsum(trace.rounding for trace in own) or told > _MOST * change:
        return None
    return _norm(max(0.0, math.fsum(map(_unexplained, own))), change)


def _unexplained(trace: Trace) -> float:
    """Return ‖T − W − ΣD‖² of a module."""
    return trace.moved - 2 * float(trace.along.sum()) + trace.asked


def _energy(traces: Sequence[Trace], number: int) -> float:
    return math.fsum(float(t.gram[t.terms.index(number), t.terms.index(number)]) for t in traces)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 and math.isfinite(part) else None


def _norm(rest: float, whole: float) -> float:
    return math.sqrt(rest / whole) if 0 < whole < math.inf else 0.0 if whole == 0 else math.inf


def _rest(first: Presence, traces: Sequence[Trace]) -> float:
    """Return ‖T − W − Σ c_j D_j‖² over all modules; the traces are at the strengths c_j."""
    left = {trace.module for trace in traces}
    found = [*map(_unexplained, traces)]
    found += [trace.moved for trace in first.traces if trace.module not in left]
    return max(0.0, math.fsum(found)) if all(map(math.isfinite, found)) else math.inf


def _strengths(
    found: Presence, base: Checkpoint, claims: Sequence[Claim], context: Context
) -> tuple[list[float], list[bool], list[Trace]]:
    """Return the factor of each claimed weight, whether it is told, and the traces at these factors.

    The factor of an adapter that is not there is 0.
    """
    ones = [1.0] * len(claims)
    if all(claim.stated for claim in claims):
        traces = rounded_anew(found, base, threads=context.threads, notify=context.notify)
        if _agree(traces):
            return ones, [True] * len(claims), traces
    common = common_strengths(found.traces, len(claims))
    told = [one is not None for one in common]
    factors = [0.0 if one is None else one for one in common]
    traces = rounded_anew(found.grown(factors), base, threads=context.threads)
    result = []
    for claim, factor in zip(
        claims, _before_rounding(found, base, factors, traces, context), strict=True
    ):
        near = claim.stated and abs(factor - 1.0) <= CLOSE
        result.append(1.0 if near else 0.0 if abs(factor) <= CLOSE / 10 else factor)
    if result != factors:
        traces = rounded_anew(found.grown(result), base, threads=context.threads)
    return result, told, [trace for trace in traces if trace.terms]


def _agree(traces: Sequence[Trace]) -> bool:
    """Return whether most of the changes are there as they are claimed."""
    asked = math.fsum(trace.asked for trace in traces)
    return math.fsum(t.asked for t in traces if fault_of(t) is None) > _MOST * asked


def _before_rounding(
    found: Presence,
    base: Checkpoint,
    factors: Sequence[float],
    traces: Sequence[Trace],
    context: Context,
) -> list[float]:
    """Return the factors before rounding, of changes on weights that were in the numbers of their type.

    Changes below the distance of these numbers are partly lost, so that less is there than was added.
    Modules in which rounding leaves all tell a factor as it was. For adapters without any, rounding anew
    tells how much more must have been added, if it was rounded to nearest; other ways keep all.

    Args:
        factors: by what is there. traces: at these factors.
    """
    kept = {trace.module: 1.0 if trace.kept is None else trace.kept for trace in traces}
    whole = [t for t in found.traces if abs(kept.get(t.module, 1.0) - 1.0) <= CLOSE / 2]
    if len(whole) == len(found.traces):
        return list(factors)
    names = {trace.module for trace in whole}
    part = [trace for trace in found.traces if trace.module not in names]
    as_it_was = common_strengths(whole, len(factors))
    left = [0.0 if one is None else one for one in common_strengths(part, len(factors))]
    growth = _growth(replace(found, traces=part), base, left, context)
    return [
        growth * rest if one is None else one for one, rest in zip(as_it_was, left, strict=True)
    ]


def _growth(found: Presence, base: Checkpoint, factors: Sequence[float], context: Context) -> float:
    """Return the factor by which changes were larger than what rounding to nearest left of them.

    1 where what is there is not what rounding to nearest leaves.
    """
    some = sampled(found)
    traces = [trace.scaled(factors) for trace in some.traces]
    asked = math.fsum(trace.asked for trace in traces)
    there = math.fsum(float(trace.along.sum()) for trace in traces)
    if not asked > 0 or not there > 0:
        return 1.0

    def rounded(growth: float) -> tuple[float, float]:
        """Return the part of the changes that is left of larger ones, and the lost energy."""
        anew = rounded_anew(
            some.grown([one * growth for one in factors]), base, threads=context.threads
        )
        left = math.fsum((1.0 if t.kept is None else t.kept) * t.asked for t in anew) / growth
        return left, math.fsum(t.lost for t in anew)

    low, high = 1.0 / 4, _FURTHEST
    for _ in range(_STEPS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if rounded(middle)[0] < there else (low, middle)
    growth = math.sqrt(low * high)
    rest = math.fsum(t.moved for t in traces) - 2 * growth * there + growth**2 * asked
    return growth if rest <= _LIKE_NEAREST * rounded(growth)[1] else 1.0
