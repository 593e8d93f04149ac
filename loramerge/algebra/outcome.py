"""The results of a combination, site by site, with the energy that truncation lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from loramerge.adapter import Adapter, Delta, Site
from loramerge.algebra.ranks import RankRule, relative
from loramerge.files.spool import Keep
from loramerge.files.tensors import Tensor

__all__ = ["Combined", "SiteOutcome", "SizeModel", "held", "moved", "uncut"]


@dataclass(frozen=True)
class SizeModel:
    """The file size of given ranks.

    Args:
        exact: function of site → rank that gives the file's exact bytes (sites left out: absent).
        itemsize: bytes per element of the factors.
        first: function of a site that estimates what its first direction costs beside its elements.
    """

    exact: Callable[[Mapping[Site, int]], int]
    itemsize: int
    first: Callable[[Site], int]


@dataclass(frozen=True)
class SiteOutcome:
    """The result at one site.

    Args:
        delta: the result, or None where nothing is left (rank 0).
        rank_before: rank of the terms together; None for dense and vector deltas.
        energy: ‖ΔW‖_F² of the exact sum; lost: ‖ΔW − result‖_F². Both are nan where the rank stayed
            and no norm was needed.
        scale: factor of the final scale, which the result contains.
    """

    site: Site
    delta: Delta | None
    rank_before: int | None
    energy: float
    lost: float
    scale: float = 1.0

    @property
    def rank_after(self) -> int | None:
        """Rank of the result."""
        return 0 if self.delta is None else self.delta.rank

    @property
    def relative_error(self) -> float:
        """√(lost / energy)."""
        return 0.0 if self.lost == 0 else relative(self.lost, self.energy)


def held(outcomes: Sequence[SiteOutcome], keep: Keep) -> list[SiteOutcome]:
    """Return the outcomes of one site with tensors that are held elsewhere; equal deltas once."""
    seen: dict[int, Delta] = {}
    found = []
    for outcome in outcomes:
        delta = outcome.delta
        if delta is not None:
            if id(delta) not in seen:
                seen[id(delta)] = moved(delta, keep)
            outcome = replace(outcome, delta=seen[id(delta)])
        found.append(outcome)
    return found


def moved(delta: Delta, keep: Keep) -> Delta:
    """Return a delta whose computed tensors are held elsewhere."""
    kind: Any = delta  # every kind is a dataclass, which their base class does not say
    old = {one.name: getattr(delta, one.name) for one in fields(kind)} if is_dataclass(kind) else {}
    new = {name: keep(value) for name, value in old.items() if isinstance(value, Tensor)}
    changed = {name: tensor for name, tensor in new.items() if tensor is not old[name]}
    found: Delta = replace(kind, **changed) if changed else delta
    return found


@dataclass(frozen=True)
class Combined:
    """The outcome of every site, and the figures over all.

    Args:
        losses: of a fair cut, position of an adapter → share of its norm that is lost.
    """

    outcomes: tuple[SiteOutcome, ...]
    losses: Mapping[int, float] = field(default_factory=dict)

    @property
    def deltas(self) -> dict[Site, Delta]:
        """The sites that are left."""
        return {o.site: o.delta for o in self.outcomes if o.delta is not None}

    @property
    def lossy(self) -> bool:
        """True if any rank was cut."""
        return any(o.lost > 0 for o in self.outcomes)

    @property
    def relative_error(self) -> float:
        """√(Σ lost / Σ energy) over the sites whose energy is known."""
        return self.error_at(None)

    def error_under(self, rule: RankRule, norms: Mapping[Site, float] | None = None) -> float:
        """Return the error that a rule limits: where it chose fair ranks, that of the worst adapter."""
        if rule.error_chooses and self.losses:
            return max(self.losses.values())
        return self.error_at(norms)

    def error_at(self, norms: Mapping[Site, float] | None) -> float:
        """Return the relative error with every site divided by a norm; None divides by none."""
        known = [
            (o, 1.0 if norms is None else 1.0 / norms[o.site] ** 2)
            for o in self.outcomes
            if not math.isnan(o.energy)
        ]
        return relative(
            math.fsum(part * o.lost for o, part in known),
            math.fsum(part * o.energy for o, part in known),
        )

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
    def scales(self) -> tuple[float, float]:
        """The least and the greatest factor of the final scale."""
        found = [o.scale for o in self.outcomes]
        return min(found, default=1.0), max(found, default=1.0)

    @property
    def left_out(self) -> list[str]:
        """Names of the sites of rank 0."""
        return [o.site.name for o in self.outcomes if o.delta is None]


def uncut(adapter: Adapter) -> Combined:
    """Return the outcome of a sum that was made elsewhere, without truncation."""
    return Combined(
        tuple(
            SiteOutcome(site, delta, delta.rank, math.nan, 0.0)
            for site, delta in adapter.deltas.items()
        )
    )
