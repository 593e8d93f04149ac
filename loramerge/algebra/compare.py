"""Compare two adapters by norms, cosines and best fits, from factors and never from ΔW."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from loramerge.adapter import Adapter, Delta, Site
from loramerge.adapter.opaque import commonly_named
from loramerge.adapter.sites import aligned
from loramerge.algebra.arrays import Array
from loramerge.algebra.kinship import EQUAL, ROUNDED, Kinship, Spectra, kinship, may_be_cut
from loramerge.algebra.moments import Moments
from loramerge.algebra.overlap import Overlap, products, spectrum_of
from loramerge.algebra.svd import inner_product
from loramerge.algebra.workers import ordered
from loramerge.errors import NumericsError, Setting, ShapeError
from loramerge.events import Notify, ignore

__all__ = [
    "Comparison",
    "Moments",
    "block_of",
    "comparable",
    "compare",
    "delta_product",
    "in_order",
    "verdict",
]


@dataclass(frozen=True)
class Comparison:
    """Two adapters side by side.

    Args:
        sites: moments of every shared site that could be compared.
        only_a, only_b: names of sites that one side lacks.
        skipped: shared sites that need a base, or whose kind is not supported.
        outside: moments of the sites that one side lacks.
        overlaps: of the shared sites that have factors.
        spectra: singular values of both at every site of either, where they may be truncations.
        refactored: whether sites with the same delta have other factors.
    """

    sites: Mapping[Site, Moments]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    skipped: tuple[str, ...]
    outside: Moments
    overlaps: Mapping[Site, Overlap] = field(default_factory=dict)
    spectra: Spectra = ()
    refactored: bool = False

    @property
    def kinship(self) -> Kinship:
        """The relation of the two; truncations are known only with `spectra`."""
        return kinship(self.total, self.spectra)

    def overlap(self, block: str | None = None) -> Overlap:
        """Return the overlap of the shared sites that have factors, of one block or of all."""
        chosen = (o for s, o in self.overlaps.items() if block in (None, block_of(s)))
        return sum(chosen, Overlap())

    @property
    def shared(self) -> Moments:
        """Moments over the shared sites."""
        return sum(self.sites.values(), Moments(0.0, 0.0, 0.0))

    @property
    def total(self) -> Moments:
        """Moments over all sites; a site that one side lacks counts as zero."""
        return self.shared + self.outside

    def blocks(self) -> dict[str, Moments]:
        """Moments by block of the network, in natural order of their names."""
        found: dict[str, Moments] = {}
        for site, moments in self.sites.items():
            name = block_of(site)
            found[name] = found.get(name, Moments(0.0, 0.0, 0.0)) + moments
        return {name: found[name] for name in in_order(found)}


def in_order(names: Iterable[str]) -> list[str]:
    """Return names of blocks in natural order."""
    return sorted(names, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts `layers.2` before `layers.10`."""
    return [(int(part) if part.isdigit() else -1, part) for part in name.split(".")]


_NUMBERED = frozenset({"down_blocks", "up_blocks", "layers", "transformer_blocks", "h"})


def block_of(site: Site) -> str:
    """Return the block of a site: `unet.down_blocks.1`, `text_encoder.layers.3`, …

    The outermost numbered part ends the name; a module without one keeps its first two parts.
    """
    parts = site.modules[0].split(".")
    if "mid_block" in parts:
        return f"{parts[0]}.mid_block"
    for i, part in enumerate(parts[:-1]):
        if part in _NUMBERED and parts[i + 1].isdigit():
            return ".".join((*parts[: min(i, 1)], part, parts[i + 1]))
    return ".".join(parts[:2])


def delta_product(a: Delta, b: Delta) -> float:
    """Return ⟨ΔW_a, ΔW_b⟩ in float64: through factors where both have them, else dense."""
    import numpy as np

    if a.rank is not None and b.rank is not None:
        return inner_product(a.factors("float64"), b.factors("float64"))
    with np.errstate(over="ignore", invalid="ignore"):
        return float((a.dense().reshape(-1) * b.dense().reshape(-1)).sum())


@dataclass(frozen=True)
class _Pair:
    """Two deltas of one site: their figures, and whether the same change has other factors."""

    moments: Moments
    overlap: Overlap | None = None
    refactored: bool = False


def _compared(site: Site, a: Delta, b: Delta) -> _Pair:
    import numpy as np

    if a.flat_shape != b.flat_shape:
        raise ShapeError(
            "the two deltas differ in shape",
            module=site.name,
            expected=list(a.shape),
            found=list(b.shape),
        )
    if a.rank is None or b.rank is None:
        pairs = (a, a), (b, b), (a, b)
        return _Pair(Moments(*(_finite(site, delta_product(x, y)) for x, y in pairs)))
    factors = a.factors("float64"), b.factors("float64")
    moments, overlap = products(*factors)
    for one in (moments.aa, moments.bb, moments.ab):
        _finite(site, one)
    same = moments.distance <= EQUAL
    equal = same and all(np.array_equal(x, y) for x, y in zip(*factors, strict=True))
    return _Pair(moments, overlap, same and not equal)


def _finite(site: Site, product: float) -> float:
    if not math.isfinite(product):
        raise NumericsError(
            "NaN or infinity in the input",
            module=site.name,
            hint=("inspect it with ", Setting("deep", True), " to list the modules that hold it"),
        )
    return product


def comparable(*deltas: Delta) -> bool:
    """Return whether deltas can be compared without a base."""
    return all(d.facts.computable and not d.needs_base for d in deltas)


def compare(
    a: Adapter, b: Adapter, *, threads: int | None = None, notify: Notify = ignore
) -> Comparison:
    """Compare two adapters site by site.

    Raises:
        ShapeError: if a shared site has two shapes.
        NumericsError: if a delta holds NaN or infinity.
    """
    a, b = aligned(commonly_named([a, b]))
    shared = [site for site in a.deltas if site in b.deltas]
    usable = [site for site in shared if comparable(a.deltas[site], b.deltas[site])]

    def work(site: Site) -> _Pair:
        return _compared(site, a.deltas[site], b.deltas[site])

    pairs = ordered(work, usable, threads=threads, task="comparing", notify=notify)
    found = dict(zip(usable, pairs, strict=True))
    alone_a = {s: d for s, d in a.deltas.items() if s not in b.deltas}
    alone_b = {s: d for s, d in b.deltas.items() if s not in a.deltas}
    comparison = Comparison(
        {site: pair.moments for site, pair in found.items()},
        tuple(s.name for s in alone_a),
        tuple(s.name for s in alone_b),
        tuple(s.name for s in shared if s not in found),
        Moments(_energy(alone_a), _energy(alone_b), 0.0),
        {site: pair.overlap for site, pair in found.items() if pair.overlap is not None},
        refactored=any(pair.refactored for pair in found.values()),
    )
    if comparison.skipped or not may_be_cut(comparison.total):
        return comparison
    every = [site for site in {**a.deltas, **b.deltas} if site in found or site not in shared]

    def values(site: Site) -> tuple[Array, Array]:
        one, other = a.deltas.get(site), b.deltas.get(site)
        dense = {delta.rank is None for delta in (one, other) if delta is not None}
        return _spectrum(one, len(dense) > 1), _spectrum(other, len(dense) > 1)

    spectra = ordered(values, every, threads=threads, task="decomposing", notify=notify)
    return replace(comparison, spectra=tuple(spectra))


def _spectrum(delta: Delta | None, whole: bool) -> Array:
    """Return the singular values of a delta, none for one that is missing or needs a base."""
    import numpy as np

    if delta is None or not comparable(delta):
        return np.zeros(0)
    return spectrum_of(delta, whole=whole)


def _energy(deltas: Mapping[Site, Delta]) -> float:
    return math.fsum(_finite(s, delta_product(d, d)) for s, d in deltas.items() if comparable(d))


def verdict(comparison: Comparison) -> str:
    """Return a sentence on how two adapters are related."""
    total, shared = comparison.total, comparison.shared
    if not comparison.sites:
        if comparison.skipped:
            return "None of the modules in common can be compared."
        return "The two have no module in common."
    if total.aa == 0 or total.bb == 0:
        both = total.aa == total.bb
        return "Both change nothing." if both else "One of the two changes nothing."
    rest = ""
    if comparison.only_a or comparison.only_b:
        rest = (
            f" They are compared on {len(comparison.sites)} shared modules; "
            f"{len(comparison.only_a)} are only in A and {len(comparison.only_b)} only in B."
        )
    cosine, fit = shared.cosine, shared.fit
    if cosine is None or fit is None:
        return "On the modules in common, one of the two changes nothing." + rest
    if shared.distance <= EQUAL:
        other = " Their factors differ." if comparison.refactored else ""
        return "The two change the weights in the same way." + other + rest
    if shared.distance <= ROUNDED:
        return "The two are the same up to rounding." + rest
    if cosine > 1 - ROUNDED**2:
        return f"B is A times {fit:.4g}." + rest
    related = comparison.kinship
    if related.kind == "resized" and not comparison.skipped:
        return f"{related.words()}." + rest
    if cosine > 0.9:
        return f"B is close to A times {fit:.3g} (cosine {cosine:.3f})." + rest
    if cosine > 0.3:
        return f"The two are related (cosine {cosine:.2f})." + rest
    if cosine < -0.3:
        return f"The two change the weights in opposite directions (cosine {cosine:.2f})." + rest
    return f"The two are unrelated (cosine {cosine:.3f})." + rest
