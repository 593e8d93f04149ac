"""The figures of one module that findings follow from, read once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loramerge.adapter import Delta, Site
from loramerge.adapter.delta import Pair
from loramerge.adapter.problems import takes_too_much
from loramerge.algebra.svd import decompose, decompose_dense, inner_product

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["ModuleFigures", "measure"]

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_BLOCK = 1 << 20  # elements of ΔW that are computed at a time
_HALF = 65504.0


@dataclass(frozen=True)
class ModuleFigures:
    """The figures of one module.

    Args:
        not_finite: role → number of values that are NaN or infinite.
        norm: ‖ΔW‖_F; None where it cannot be computed without a base, or is not finite.
        singular_values: descending; None where they were not computed.
        dead: the ranks whose column of up or row of down is exactly zero.
        zero_up: whether up is exactly zero.
        peaks: largest magnitudes of the factors, of their product, and of ΔW, where float16 may be too
            small for one of them; else empty.
    """

    site: Site
    delta: Delta
    not_finite: dict[str, int] = field(default_factory=dict)
    norm: float | None = None
    singular_values: Array | None = None
    dead: tuple[int, ...] = ()
    zero_up: bool = False
    peaks: tuple[float, float, float] | None = None

    @property
    def rank(self) -> int | None:
        """Rank as the file counts it."""
        return None if self.delta.core is None else self.delta.core.dim

    @property
    def effective_rank(self) -> float:
        """The effective rank exp(H(σ²/Σσ²)); 0 for no change.

        Source: Roy and Vetterli, "The effective rank" (2007), of energies.
        """
        import numpy as np

        assert self.singular_values is not None
        energy = self.singular_values**2
        total = float(energy.sum())
        if total == 0:
            return 0.0
        share = energy[energy > 0] / total
        return float(np.exp(-(share * np.log(share)).sum()))

    def row(self, *, spectra: bool) -> dict[str, Any]:
        """Return the module's line of the table."""
        found: dict[str, Any] = {
            "module": self.site.name,
            "kind": self.delta.kind,
            "shape": list(self.delta.shape),
            "rank": self.rank,
            "alpha": self.delta.alpha,
            "norm": self.norm,
        }
        if spectra and self.singular_values is not None:
            found |= self._spectrum()
        return found

    def _spectrum(self) -> dict[str, Any]:
        import numpy as np

        s = self.singular_values
        assert s is not None
        energy = s**2
        total = float(energy.sum())
        if total == 0:
            return {
                "largest": 0.0, "effective_rank": 0.0, "stable_rank": 0.0, "rank_99": 0,
                "singular_values": [],
            }  # fmt: skip
        reached = np.cumsum(energy) >= 0.99 * total * (1 - 1e-12)
        return {
            "largest": float(s[0]),
            "effective_rank": self.effective_rank,
            "stable_rank": total / float(energy[0]),
            "rank_99": int(reached.argmax()) + 1,
            "singular_values": [float(value) for value in s],
        }


def measure(
    site: Site, delta: Delta, *, spectra: bool = False, norms: bool = False
) -> ModuleFigures:
    """Read the tensors of a module and measure it.

    Args:
        spectra: compute singular values of dense changes, too.
        norms: compute norms alone, which is faster.
    """
    broken = _not_finite(delta)
    computable = delta.facts.computable and not delta.needs_base and not takes_too_much(delta)
    if broken or not computable:
        return ModuleFigures(site, delta, broken)
    if delta.rank is None:
        dense = delta.dense()
        norm = math.sqrt(float((dense**2).sum()))
        values = None
        if spectra and dense.ndim > 1:
            values = decompose_dense(dense.reshape(delta.flat_shape)).singular_values
        return ModuleFigures(site, delta, {}, norm, values)
    up, down = delta.factors("float64")
    norm = math.sqrt(max(0.0, inner_product((up, down), (up, down))))
    plain = delta.pair if delta.facts.plain else None
    if norms or not math.isfinite(norm):
        return ModuleFigures(site, delta, {}, norm)
    return ModuleFigures(
        site,
        delta,
        {},
        norm,
        decompose(up, down).singular_values if spectra or delta.core is not None else None,
        () if plain is None else _dead_ranks(plain),
        plain is not None and not up.any(),
        _peaks(up, down, plain),
    )


def _dead_ranks(pair: Pair) -> tuple[int, ...]:
    """Return the ranks of two factors that are exactly zero, in up or in down."""
    up = pair.up.numpy().reshape(pair.up.shape[:2]).astype("float32")
    down = pair.down.numpy().reshape(pair.down.shape[0], -1).astype("float32")
    alive = (up != 0).any(axis=0) & (down != 0).any(axis=1)
    return tuple(rank for rank, works in enumerate(alive.tolist()) if not works)


def _not_finite(delta: Delta) -> dict[str, int]:
    import numpy as np

    found = {}
    for role, tensor in delta.stored().items():
        if tensor.dtype in _FLOATS:
            count = int((~np.isfinite(tensor.numpy().astype("float32"))).sum())
            if count:
                found[role] = count
    return found


def _peaks(up: Array, down: Array, pair: Pair | None) -> tuple[float, float, float] | None:
    """Return the largest magnitudes of factors, product and ΔW if float16 may not hold them.

    Args:
        up, down: float64 with the scale in up.
    """
    import numpy as np

    scale = abs(pair.factor) if pair is not None and pair.factor else 1.0
    tallest = float(np.sqrt((up**2).sum(axis=1).max(initial=0.0)))
    widest = float(np.sqrt((down**2).sum(axis=0).max(initial=0.0)))
    factors = max(float(np.abs(up).max(initial=0.0)) / scale, float(np.abs(down).max(initial=0.0)))
    if max(tallest * widest / min(scale, 1.0), factors) <= _HALF:  # Cauchy–Schwarz
        return None
    step = max(1, _BLOCK // max(1, down.shape[1]))
    largest = max(
        float(np.abs(up[start : start + step] @ down).max(initial=0.0))
        for start in range(0, len(up), step)
    )
    return factors, largest / scale, largest
