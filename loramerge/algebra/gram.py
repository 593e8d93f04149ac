"""Inner products of many adapters with each other, site by site and never through ΔW.

`⟨ΔW_i, ΔW_j⟩ = Σ (U_iᵀ U_j) ∘ (D_i D_jᵀ)`: the factors of all adapters at a site lie side by side, so
two products of matrices give the inner products of all pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

from loramerge.adapter import Adapter, Delta, Site
from loramerge.adapter.opaque import commonly_named
from loramerge.adapter.sites import aligned
from loramerge.algebra.arrays import Array
from loramerge.algebra.compare import comparable, delta_product
from loramerge.algebra.workers import ordered
from loramerge.errors import NumericsError, Setting
from loramerge.events import Notify, ignore

__all__ = ["at_common_sites", "gram", "operations"]

_WIDTH = 2048  # columns of factors that are multiplied with all others at once

# the adapters that have a site in one shape, by their numbers
_Shared = list[tuple[int, Delta]]


def at_common_sites(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Return adapters whose modules are equal or apart, of each family on its own."""
    families: dict[str | None, list[int]] = {}
    for number, adapter in enumerate(adapters):
        families.setdefault(adapter.info.detection.name, []).append(number)
    found: dict[int, Adapter] = {}
    for numbers in families.values():
        together = aligned(commonly_named([adapters[number] for number in numbers]))
        found |= dict(zip(numbers, together, strict=True))
    return [found[number] for number in range(len(adapters))]


def operations(adapters: Sequence[Adapter]) -> float:
    """Return the multiplications and additions that `gram` takes, as far as factors go."""
    ranks: dict[tuple[Site, tuple[int, int]], int] = {}
    for adapter in adapters:
        for site, delta in adapter.deltas.items():
            key = site, delta.flat_shape
            ranks[key] = ranks.get(key, 0) + (delta.rank or 0)
    return float(sum(rank**2 * sum(shape) for (_, shape), rank in ranks.items()))


def gram(
    adapters: Sequence[Adapter], *, threads: int | None = None, notify: Notify = ignore
) -> Array:
    """Return the inner products of all pairs of adapters, `(n, n)` in float64.

    A site that an adapter lacks, or has in another shape, counts as zero; so does one that needs a base.

    Args:
        adapters: see `at_common_sites`.

    Raises:
        NumericsError: if one holds NaN or infinity.
    """
    import numpy as np

    sites: dict[tuple[Site, tuple[int, int]], _Shared] = {}
    for number, adapter in enumerate(adapters):
        for site, delta in adapter.deltas.items():
            if comparable(delta):
                sites.setdefault((site, delta.flat_shape), []).append((number, delta))
    total = np.zeros((len(adapters), len(adapters)))
    work = ordered(_site, sites.values(), threads=threads, task="multiplying", notify=notify)
    for ((site, _), shared), found in zip(sites.items(), work, strict=True):
        numbers = [number for number, _ in shared]
        if not np.isfinite(found).all():
            finite = np.isfinite(np.diag(found)).tolist()
            raise NumericsError(
                "NaN or infinity in the input",
                file=adapters[numbers[finite.index(False) if False in finite else 0]].label,
                module=site.name,
                hint=(
                    "inspect it with ",
                    Setting("deep", True),
                    " to list the modules that hold it",
                ),
            )
        total[np.ix_(numbers, numbers)] += found
    return total


def _site(shared: _Shared) -> Array:
    """Return the inner products of the deltas of one site, `(k, k)`."""
    import numpy as np

    found = np.zeros((len(shared), len(shared)))
    low = [place for place, (_, delta) in enumerate(shared) if delta.rank]
    if low:
        factors = [shared[place][1].factors("float64") for place in low]
        found[np.ix_(low, low)] = _of_factors(factors)
    for place, (_, delta) in enumerate(shared):
        if delta.rank is None:
            for other, (_, another) in enumerate(shared):
                if another.rank is not None or other <= place:
                    found[place, other] = found[other, place] = delta_product(delta, another)
    return found


def _of_factors(factors: Sequence[tuple[Array, Array]]) -> Array:
    """Return the inner products of deltas given by factors of rank 1 or more."""
    import numpy as np

    ups = np.concatenate([up for up, _ in factors], axis=1)
    downs = np.concatenate([down for _, down in factors], axis=0)
    starts = np.cumsum([0, *(up.shape[1] for up, _ in factors)])
    found = np.zeros((len(factors), len(factors)))
    first = 0
    with np.errstate(over="ignore", invalid="ignore"):
        while first < len(factors):
            last = int(np.searchsorted(starts, starts[first] + _WIDTH, side="right")) - 1
            last = max(last, first + 1)
            begin, end = starts[first], starts[last]
            products = ups[:, begin:end].T @ ups[:, begin:]
            products *= downs[begin:end] @ downs[begin:].T
            sums = np.add.reduceat(products, starts[first:last] - begin, axis=0)
            sums = np.add.reduceat(sums, starts[first:-1] - begin, axis=1)
            found[first:last, first:] = sums
            found[first:, first:last] = sums.T
            first = last
    return found
