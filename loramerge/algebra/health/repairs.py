"""Repairs of single modules that leave all else of ΔW as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from loramerge.adapter import Adapter, Delta, LowRank, Site
from loramerge.adapter.kinds.lora import as_lora
from loramerge.algebra.health.alphas import odd_alphas
from loramerge.algebra.health.limits import LIMITS
from loramerge.algebra.health.measure import ModuleFigures
from loramerge.algebra.health.neighbours import spike_caps
from loramerge.algebra.svd import decompose
from loramerge.files.tensors import ArrayTensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["REPAIRS", "Mended", "Repair"]


class Mended(NamedTuple):
    """The result of a repair at one module.

    Args:
        delta: the module afterwards; None leaves it out.
        words: what was done, for people.
        exact: whether ΔW of the module is what it was.
    """

    delta: Delta | None
    words: str
    exact: bool


class Repair(NamedTuple):
    """One kind of repair.

    Args:
        find: function of an adapter and the measures of its modules that gives the changes.
        words: what it does, for the documents.
        codes: of the findings that it mends.
    """

    find: Callable[[Adapter, Sequence[ModuleFigures]], Mapping[Site, Mended]]
    words: str
    codes: tuple[str, ...]


def _alphas(adapter: Adapter, _: Sequence[ModuleFigures]) -> dict[Site, Mended]:
    """Give modules with an odd alpha the scale of the others, and positive alphas to all."""
    found = {}
    for site, (alpha, usual) in odd_alphas(adapter).items():
        lora = as_lora(adapter.deltas[site])
        if lora is not None:
            scale = lora.scale._replace(
                alpha=usual * lora.rank, stored=None, ratio=None, stated=None, root=False
            )
            words = f"alpha {alpha:g} became {usual * lora.rank:g}, the scale of the other modules"
            found[site] = Mended(replace(lora, scale=scale), words, False)
    for site, delta in adapter.deltas.items():
        lora = as_lora(delta)
        if lora is None or site in found or not (lora.alpha or 0.0) < 0:
            continue
        scale = lora.scale._replace(alpha=-(lora.alpha or 0.0), stored=None)
        up = ArrayTensor(-lora.up.numpy())
        words = f"alpha {lora.alpha:g} became {-(lora.alpha or 0.0):g}, and up changed its sign"
        found[site] = Mended(replace(lora, up=up, scale=scale), words, True)
    return found


def _untrained(_: Adapter, measures: Sequence[ModuleFigures]) -> dict[Site, Mended]:
    return {
        m.site: Mended(
            None,
            "left out, because " + ("alpha is 0" if m.delta.alpha == 0 else "it changes nothing"),
            True,
        )
        for m in measures
        if m.norm == 0
    }


def _dead_ranks(adapter: Adapter, measures: Sequence[ModuleFigures]) -> dict[Site, Mended]:
    found = {}
    for m in measures:
        lora = as_lora(adapter.deltas[m.site])
        if not m.dead or not m.norm or lora is None:
            continue
        keep = [rank for rank in range(lora.rank) if rank not in m.dead]
        words = f"rank {lora.rank} became {len(keep)}; the rest was exactly zero"
        found[m.site] = Mended(_of_ranks(lora, keep), words, True)
    return found


def _of_ranks(lora: LowRank, keep: Sequence[int]) -> LowRank:
    return replace(
        lora,
        up=ArrayTensor(lora.up.numpy()[:, keep]),
        down=ArrayTensor(lora.down.numpy()[keep]),
        scale=lora.scale.moved(lora.rank, len(keep)),
    )


def _spikes(adapter: Adapter, measures: Sequence[ModuleFigures]) -> dict[Site, Mended]:
    """Lower σ₁ to what is usual: `up' = (I − (1 − cap/σ₁) u₁u₁ᵀ) up`."""
    found = {}
    for m, _, cap in spike_caps(measures, LIMITS["spike"].value):
        lora = as_lora(adapter.deltas[m.site])
        if lora is None or m.singular_values is None:
            continue
        largest = float(m.singular_values[0])
        up = ArrayTensor(_capped(lora, cap / largest))
        words = f"the largest singular value was lowered from {largest:.4g} to {cap:.4g}"
        found[m.site] = Mended(replace(lora, up=up), words, False)
    return found


def _capped(lora: LowRank, share: float) -> Array:
    """Return up, float64, with the leading left direction of ΔW times a share."""
    whole, down = lora.factors("float64")
    first, _ = decompose(whole, down, precise=True).truncate(1)
    left = first[:, 0] / math.sqrt(float((first**2).sum()))
    up = lora.up.numpy().astype("float64")
    flat = up.reshape(up.shape[:2])
    capped: Array = flat - (1.0 - share) * left[:, None] * (left @ flat)
    return capped.reshape(up.shape)


def _halves(adapter: Adapter, measures: Sequence[ModuleFigures]) -> dict[Site, Mended]:
    """Give the factors of each rank equal sizes by powers of two, which is exact."""
    limit = LIMITS["float16-overflow"].value
    found = {}
    for m in measures:
        lora = as_lora(adapter.deltas[m.site])
        if lora is None or m.peaks is None or not max(m.peaks[:2]) > limit >= m.peaks[2]:
            continue
        words = "the factors got equal sizes, so that float16 holds them and their product"
        large = m.peaks[1] > limit  # because alpha is small: a part of it moves into up
        found[m.site] = Mended(_balanced(lora, shrink=large), words, True)
    return found


def _balanced(lora: LowRank, *, shrink: bool) -> LowRank:
    import numpy as np

    up, down = lora.up.numpy().astype("float64"), lora.down.numpy().astype("float64")
    exponent = math.frexp(lora.scale.value(lora.rank))[1] if shrink and lora.alpha else 0
    up = np.ldexp(up, exponent)
    heights = np.sqrt((up.reshape(up.shape[:2]) ** 2).sum(axis=0))
    widths = np.sqrt((down.reshape(down.shape[0], -1) ** 2).sum(axis=1))
    alive = (heights > 0) & (widths > 0)
    shifts = np.zeros(lora.rank, dtype=int)
    shifts[alive] = np.round(np.log2(widths[alive] / heights[alive]) / 2).astype(int)
    up = np.ldexp(up, shifts.reshape(1, -1, *(1,) * (up.ndim - 2)))
    down = np.ldexp(down, -shifts.reshape(-1, *(1,) * (down.ndim - 1)))
    scale = lora.scale
    if exponent and lora.alpha:
        scale = scale._replace(alpha=math.ldexp(lora.alpha, -exponent), stored=None)
    return replace(lora, up=ArrayTensor(up), down=ArrayTensor(down), scale=scale)


REPAIRS: dict[str, Repair] = {
    "alpha": Repair(
        _alphas,
        "modules with an odd alpha get the scale of the others; a negative alpha moves its sign into up",
        ("alpha-odd", "alpha-negative"),
    ),
    "untrained": Repair(
        _untrained,
        "modules that change nothing are left out",
        ("untrained", "untrained-as-usual", "alpha-zero"),
    ),
    "dead-ranks": Repair(_dead_ranks, "ranks that are exactly zero are removed", ("dead-ranks",)),
    "spike": Repair(
        _spikes,
        "the largest singular value is lowered to the module's second, or to what is usual for the "
        "layer if that is more",
        ("spike",),
    ),
    "float16": Repair(
        _halves, "factors of unequal sizes are balanced by powers of two", ("float16-product",)
    ),
}
