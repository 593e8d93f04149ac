"""The strength at which known changes are in a difference of weights, by least squares.

A difference T − W is explained as Σ c_j D_j + E, with E the rounding of T. From ⟨D_i, D_j⟩, ⟨D_j, T − W⟩
and ‖T − W‖² of every module follow the strengths c_j, and the rest that they leave; no matrix is kept.
What was added as a whole has one strength in all modules. So a module with another one has lost its
change, or got it with another factor.

Source: definition; the strength of all modules is the weighted median of theirs, which up to half of
them may contradict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

__all__ = [
    "CLOSE",
    "Fault",
    "Trace",
    "alien",
    "common_strengths",
    "fault_of",
    "fitted",
    "rest_of",
    "totals",
]

Array = Any  # numpy.ndarray

CLOSE = 0.02  # of a strength, and of the norm of a change: what other programs' sums may differ by
_ROUNDINGS = 4.0  # times the energy that rounding explains: sums in half types round more than once
_DEVIATIONS = 5.0  # of a fitted strength
_ROUGH = 0.5  # of the part that rounding takes: of slightly other sums it takes another one
_SINGULAR = 1e-9  # relative size of the least direction of ⟨D_i, D_j⟩ that is told from others

Sort = Literal["lost", "strength", "other", "not finite"]


@dataclass(frozen=True)
class Trace:
    """The products of one module.

    Args:
        terms: numbers of the changes that it has.
        gram: ⟨D_i, D_j⟩ of these, `(k, k)`. along: ⟨D_j, T − W⟩, `(k,)`.
        moved: ‖T − W‖². base: ‖W‖².
        noise: ‖E‖² that rounding to the types of T and W explains.
        elements: numbers of the module.
        kept: ⟨R − W, ΣD⟩ / ‖ΣD‖² of R, W + ΣD as it is rounded; None where that is not known.
        lost: ‖R − W − ΣD‖² of the same.
    """

    module: str
    block: str
    terms: tuple[int, ...]
    gram: Array
    along: Array
    moved: float
    base: float
    noise: float
    elements: int
    kept: float | None = None
    lost: float = 0.0

    @property
    def asked(self) -> float:
        """‖ΣD‖²."""
        return float(self.gram.sum())

    @property
    def share(self) -> float:
        """⟨T − W, ΣD⟩ / ‖ΣD‖²: the strength of all changes together."""
        return float(self.along.sum()) / self.asked if self.asked > 0 else 1.0

    @property
    def spread(self) -> float:
        """The largest distance of the share from its true value that rounding explains."""
        if self.asked <= 0:
            return math.inf
        return _DEVIATIONS * math.sqrt(self.rounding / max(1, self.elements) / self.asked)

    @property
    def rounding(self) -> float:
        """The energy that rounding explains, by the types or by rounding anew, whichever is more."""
        return max(self.noise, self.lost)

    def changing(self) -> Trace:
        """Return it without the changes that are exactly zero, which nothing can tell from others."""
        import numpy as np

        at = [place for place in range(len(self.terms)) if self.gram[place, place] != 0.0]
        if len(at) == len(self.terms):
            return self
        terms = tuple(self.terms[place] for place in at)
        return replace(self, terms=terms, gram=self.gram[np.ix_(at, at)], along=self.along[at])

    def scaled(self, strengths: Sequence[float]) -> Trace:
        """Return it with changes c_j D_j; those of strength 0 are left out.

        Args:
            strengths: of all changes.
        """
        import numpy as np

        at = [place for place, term in enumerate(self.terms) if strengths[term] != 0.0]
        factors = np.array([strengths[self.terms[place]] for place in at])
        return replace(
            self,
            terms=tuple(self.terms[place] for place in at),
            gram=self.gram[np.ix_(at, at)] * np.outer(factors, factors),
            along=self.along[at] * factors,
        )


@dataclass(frozen=True)
class Fault:
    """A module that does not hold the changes as they should be.

    Args:
        sort: `lost`, nothing of them is there; `strength`, they are there with another factor; `other`,
            something else is.
        strength: the fitted factor, 1 as it should be.
        rest: norm of what no factors explain, relative to that of the changes.
        off: (number of a change, its fitted factor) of those that are not as they should be.
    """

    module: str
    sort: Sort
    strength: float
    rest: float
    off: tuple[tuple[int, float], ...] = ()


def fitted(trace: Trace) -> tuple[Array, Array]:
    """Return the strengths of a module's changes by least squares, and their standard deviations.

    Where changes are too much alike to tell them apart the deviation is infinite.
    """
    import numpy as np

    count = len(trace.terms)
    scale = np.sqrt(np.diag(trace.gram))
    if not count or not (scale > 0).all() or not math.isfinite(trace.moved):
        return np.zeros(count), np.full(count, math.inf)
    values, vectors = np.linalg.eigh(trace.gram / np.outer(scale, scale))
    held = values > _SINGULAR * values[-1]
    inverse = (vectors[:, held] / values[held]) @ vectors[:, held].T
    found = inverse @ (trace.along / scale) / scale
    variance = trace.rounding / max(1, trace.elements)
    deviation = np.sqrt(variance * np.diag(inverse)) / scale
    if not held.all():
        lost = np.abs(vectors[:, ~held]).max(axis=1) > math.sqrt(_SINGULAR)
        deviation[lost] = math.inf
    return found, deviation


def rest_of(trace: Trace, strengths: Array) -> float:
    """Return ‖T − W − Σ c_j D_j‖²."""
    if not math.isfinite(trace.moved):
        return math.inf
    found = trace.moved - 2 * float(strengths @ trace.along)
    found += float(strengths @ trace.gram @ strengths)
    return max(0.0, found) if not math.isnan(found) else math.inf


def common_strengths(traces: Sequence[Trace], count: int) -> list[float | None]:
    """Return the strength of each change in all modules; None for one that others hide.

    Args:
        count: of changes.
    """
    votes: list[list[tuple[float, float]]] = [[] for _ in range(count)]
    for trace in traces:
        strengths, deviations = fitted(trace)
        for place, term in enumerate(trace.terms):
            if math.isfinite(deviations[place]):
                weight = float(trace.gram[place, place])
                votes[term].append((float(strengths[place]), weight))
    return [_median(those) if those else None for those in votes]


def _median(votes: Sequence[tuple[float, float]]) -> float:
    """Return the weighted median of (value, weight)."""
    ordered = sorted(votes)
    half = sum(weight for _, weight in ordered) / 2
    seen = 0.0
    for value, weight in ordered:
        seen += weight
        if seen >= half:
            return value
    return ordered[-1][0]


def fault_of(trace: Trace) -> Fault | None:
    """Return in what way a module does not hold its changes at strength 1, None if it does.

    It does if T − W − ΣD is no more than rounding and the inexact sums of other programs explain, and if
    the share that is there is 1, or what rounding anew keeps.
    """
    import numpy as np

    asked = trace.asked
    if not trace.terms or asked <= 0:
        return None
    if not math.isfinite(trace.moved):
        return Fault(trace.module, "not finite", math.nan, math.inf)
    rest = rest_of(trace, np.ones(len(trace.terms)))
    allowed = _ROUNDINGS * trace.rounding + CLOSE**2 * asked
    kept = 1.0 if trace.kept is None else trace.kept
    near = CLOSE + _ROUGH * abs(1.0 - kept) + trace.spread
    shares = (1.0, kept)
    if rest <= allowed and min(abs(trace.share - one) for one in shares) <= near:
        return None
    strengths, deviations = fitted(trace)
    left = rest_of(trace, strengths)
    size = math.sqrt(left / asked)
    strongest = max(1.0, *(float(abs(one)) for one in strengths))
    explained = left <= _ROUNDINGS * trace.rounding + (CLOSE * strongest) ** 2 * asked
    off = [
        (term, float(strength))
        for term, strength, deviation in zip(trace.terms, strengths, deviations, strict=True)
        if abs(strength - 1.0)
        > CLOSE + _ROUGH * abs(1.0 - kept) + _DEVIATIONS * min(deviation, 1.0)
    ]
    if not explained or not off:
        return Fault(trace.module, "other", trace.share, size, tuple(off))
    gone = all(abs(strength) <= max(near, CLOSE) for _, strength in off)
    return Fault(trace.module, "lost" if gone else "strength", off[0][1], size, tuple(off))


def alien(trace: Trace) -> Fault | None:
    """Return the fault of a module that should be the base's and is not, beyond rounding."""
    if trace.terms or trace.moved <= _ROUNDINGS * trace.rounding:
        return None
    sort: Sort = "other" if math.isfinite(trace.moved) else "not finite"
    return Fault(trace.module, sort, math.nan, math.inf)


@dataclass(frozen=True)
class Total:
    """The sums over modules of a block, for one change.

    Args:
        strength: by least squares over all of them, None where others hide it.
        rest: norm of T − W − Σ c_j D_j relative to that of T − W.
    """

    modules: int
    strength: float | None
    rest: float


def totals(traces: Sequence[Trace], term: int) -> dict[str, Total]:
    """Return block → the strength of a change in it."""
    import numpy as np

    blocks: dict[str, list[Trace]] = {}
    for trace in traces:
        if term in trace.terms:
            blocks.setdefault(trace.block, []).append(trace)
    found = {}
    for block, those in blocks.items():
        terms = sorted({one for trace in those for one in trace.terms})
        place = {one: n for n, one in enumerate(terms)}
        gram, along = np.zeros((len(terms),) * 2), np.zeros(len(terms))
        for trace in those:
            at = [place[one] for one in trace.terms]
            gram[np.ix_(at, at)] += trace.gram
            along[at] += trace.along
        whole = Trace(
            block, block, tuple(terms), gram, along,
            sum(t.moved for t in those), sum(t.base for t in those),
            sum(t.rounding for t in those), sum(t.elements for t in those),
        )  # fmt: skip
        strengths, deviations = fitted(whole)
        told = math.isfinite(deviations[place[term]])
        rest = rest_of(whole, strengths)
        share = math.sqrt(rest / whole.moved) if 0 < whole.moved < math.inf else 0.0
        found[block] = Total(len(those), float(strengths[place[term]]) if told else None, share)
    return found
