"""Cut a combination so that the adapter in it which loses most loses as little as possible.

A truncated SVD keeps the directions of the most energy, which are those of the loudest adapter; a
quiet one may be lost altogether. Here each site keeps a subspace of its outputs, `R = P Pᵀ ΔW` with k
orthonormal columns P, or of its inputs, `R = ΔW P Pᵀ`, where the adapters share more of them. So a part
of each adapter's own change D is kept, and how much is known; `balance.py` chooses k and P.

Source: the criterion is that of Tantipongpipat et al., "Multi-Criteria Dimensionality Reduction with
Applications to Fairness" (2019), there for groups of data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from loramerge.adapter import LowRank, Site
from loramerge.algebra.arrays import Array
from loramerge.algebra.balance import Balance, Shares, balance_of
from loramerge.algebra.bases import Basis, Shared, shared
from loramerge.algebra.budget import Cut
from loramerge.algebra.combine import (
    SUM,
    Work,
    at_site,
    can_cut,
    note_changed_kinds,
    quiet,
    require_same_shape,
    with_pool,
)
from loramerge.algebra.method import Method
from loramerge.algebra.outcome import Combined, SiteOutcome, held
from loramerge.algebra.svd import decompose
from loramerge.algebra.terms import Term, naming
from loramerge.algebra.workers import ordered
from loramerge.errors import Setting, UsageError
from loramerge.events import Notify, ignore
from loramerge.files.spool import Keep, in_memory

__all__ = ["check_fair", "combine_fairly"]

_STRANGE = (
    1e-2  # share of a norm from which on such directions are more than the rounding of a file
)


def check_fair(cut: Cut) -> None:
    """Refuse criteria that a fair cut does not have.

    Raises:
        UsageError: naming them.
    """
    rule = cut.rule
    others = [name for name in ("energy", "ratio", "cumulative") if getattr(rule, name) is not None]
    if others:
        raise UsageError(
            f"a fair result has no {others[0]}: its ranks are chosen by what each adapter loses",
            hint=(
                "give ",
                Setting("rank", 8),
                ", ",
                Setting("max_size", "20MB"),
                " or ",
                Setting("max_error", 0.1),
            ),
        )
    if cut.norms is not None:
        raise UsageError("fair and relative_to exclude each other", hint="give one of the two")


def combine_fairly(
    terms: Mapping[Site, Sequence[Term]],
    ingredients: Mapping[Site, Sequence[Term]],
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
    """Combine the terms of every site, and return the fair result of each cut.

    Sites whose rank need not be lowered stay as they are. `Combined.losses` are the √L_i.

    Args:
        terms, method: what is cut; see `combine`.
        ingredients: site → the adapters to be fair to, as terms. A site without any is cut by its own
            energy, after all others.
        cuts: rules with `rank`, `conv_rank`, `max_size` or `max_error`, which alone limits the loss of
            every adapter.

    Raises:
        UsageError: for other criteria.
        ShapeError, NumericsError: see `combine`.
    """
    for cut in cuts:
        check_fair(cut)
    work = Work(with_pool(method, terms, threads, notify), device, precise)
    sites = [site for site, found in terms.items() if can_cut(found)]

    def seen(site: Site) -> Shares:
        with naming(site), quiet():
            return _look(site, terms[site], ingredients.get(site, ()), work).shares

    found = ordered(seen, sites, threads=threads, task="ingredients", notify=notify)
    shares = dict(zip(sites, found, strict=True))
    shapes = {site: terms[site][0].delta.shape for site in sites}
    balances = [balance_of(shares, shapes, cut) for cut in cuts]

    def one(site: Site) -> list[SiteOutcome]:
        with naming(site), quiet():
            ranks = [balance.ranks.get(site) for balance in balances]
            whole = shares[site].rank if site in shares else None
            uncut = at_site(site, terms[site], work, cuts, ranks) if whole in ranks else []
            if all(rank == whole for rank in ranks):
                return uncut
            own = _look(site, terms[site], ingredients.get(site, ()), work)
            return [
                uncut[place] if rank == whole else _cut(site, terms[site], own, balance, work)
                for place, (rank, balance) in enumerate(zip(ranks, balances, strict=True))
            ]

    done = ordered(one, terms, threads=threads, task=task, notify=notify)
    rows = [held(outcomes, keep) for outcomes in done]
    columns = list(zip(*rows, strict=True)) or [() for _ in cuts]
    combined = [
        Combined(tuple(outcomes), balance.losses)
        for outcomes, balance in zip(columns, balances, strict=True)
    ]
    note_changed_kinds(terms, combined[0], notify)
    return combined


# ---- one site


class _Look(NamedTuple):
    """A site with all its matrices.

    Args:
        factors: of the combination, `(out, r)` and `(r, in·kh·kw)`.
        frame: R directions of outputs, or of inputs where `turned`.
        energy: ‖ΔW‖_F² of the combination.
        applied: factor of the method's final scale.
    """

    factors: tuple[Array, Array]
    frame: Basis
    turned: bool
    shares: Shares
    energy: float
    applied: float


def _look(site: Site, terms: Sequence[Term], ingredients: Sequence[Term], work: Work) -> _Look:
    import numpy as np

    require_same_shape([*terms, *ingredients])
    merged = work.merge(site, terms)
    found = work.decompose(merged)
    up, down = (one.astype("float64") for one in found.truncate(found.rank))
    own = LowRank.from_arrays(up, down, terms[0].delta.shape)
    deltas = [term.weighted for term in ingredients]
    frames = shared(deltas or [own])
    turned = bool(deltas) and _concentration(frames, True) > _concentration(frames, False)
    columns = (down.T if turned else up) * np.linalg.norm(up, axis=0)  # U Σ, or V Σ
    whole = _inside(frames, columns, turned)
    if deltas and float((whole**2).sum()) < (1 - _STRANGE**2) * float((columns**2).sum()):
        frames = shared([*deltas, own])
        whole = _inside(frames, columns, turned)
    positions = (term.position for term in ingredients)
    parts = dict(zip(positions, _parts(frames, turned), strict=False))
    frame = _frame(frames, turned)
    return _Look(
        (up, down), frame, turned, Shares(parts, whole, found.rank), found.energy, merged.applied
    )


def _frame(frames: Shared, turned: bool) -> Basis:
    """Return the directions of outputs, or of inputs."""
    if not turned:
        return frames.left
    assert frames.right is not None
    return frames.right


def _inside(frames: Shared, columns: Array, turned: bool) -> Array:
    """Return columns in the directions of outputs, or of inputs, `(R, r)`."""
    frame = _frame(frames, turned)
    found: Array = frame.columns.T @ columns
    return found if frame.turn is None else frame.turn.T @ found


def _parts(frames: Shared, turned: bool) -> list[Array]:
    """Return `(R, r)` matrices F of deltas, with `F Fᵀ = D Dᵀ` of outputs, or `Dᵀ D` of inputs."""
    import numpy as np

    sides = [(down.T, up) if turned else (up, down.T) for up, down in frames.factors]
    return [one @ np.asarray(np.linalg.qr(other, mode="r")).T for one, other in sides]


def _concentration(frames: Shared, turned: bool) -> float:
    """Return how much deltas have their leading directions in common; their sizes do not count."""
    import numpy as np

    parts = _parts(frames, turned)
    stacked = np.concatenate([one / (np.linalg.norm(one) or 1.0) for one in parts], axis=1)
    return float(np.linalg.norm(stacked.T @ stacked))


def _cut(
    site: Site, terms: Sequence[Term], own: _Look, balance: Balance, work: Work
) -> SiteOutcome:
    """Return the combination in the directions that a balance keeps."""
    rank = balance.ranks[site]
    before = None
    if all(term.delta.rank is not None for term in terms):
        before = sum(term.delta.rank or 0 for term in terms)
    if rank == 0:
        return SiteOutcome(site, None, before, own.energy, own.energy, own.applied)
    up, down = own.factors
    if rank < own.shares.rank:
        _, vectors = own.shares.directions(balance.weights)
        kept = own.frame.times(vectors[:, :rank])
        up, down = (up @ (down @ kept), kept.T) if own.turned else (kept, (kept.T @ up) @ down)
    small = decompose(up, down, precise=True)
    dtype = "float64" if work.precise else "float32"
    up, down = (one.astype(dtype) for one in small.truncate(min(rank, small.rank)))
    lost = max(0.0, own.energy - small.energy) if rank < own.shares.rank else 0.0
    delta = LowRank.from_arrays(up, down, terms[0].delta.shape)
    return SiteOutcome(site, delta, before, own.energy, lost, own.applied)
