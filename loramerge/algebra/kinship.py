"""The relation of two adapters: copies, however they were scaled, cut or factored, and others.

It is told by inner products and singular values of the deltas, so neither the factors nor the dialect
matter. A truncation is known by the Eckart–Young theorem: no matrix of its rank is nearer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from loramerge.algebra.arrays import Array
from loramerge.algebra.moments import Moments

__all__ = ["EQUAL", "ROUNDED", "Kinship", "Spectra", "kinship", "may_be_cut"]

EQUAL = 1e-6  # relative distance below which two adapters are the same up to float32
ROUNDED = 2e-3  # … up to rounding to half precision
_CAPTURED = 0.999  # share of what a rank can hold of an adapter that a truncation to it holds
_NEAR = 1.05  # energy that a truncation loses, over the least that its rank loses
_LEAST = 0.1  # cosine, below which an adapter has kept too little of another to be told

Kind = Literal["same", "rounded", "rescaled", "resized", "other", "nothing"]
Spectra = Iterable[tuple[Array, Array]]  # singular values of A and of B, of every module of either


@dataclass(frozen=True)
class Kinship:
    """The relation of adapters A and B.

    Args:
        kind: `same`, the same change; `rounded`, the same up to rounding; `rescaled`, B = factor · A;
            `resized`, one is a truncation of the other, perhaps rescaled too; `nothing`, one of the two
            changes nothing.
        factor: of A in B; None for other adapters.
        smaller: which one is the truncation.
        ranks: least and greatest rank of the truncation, of the modules that it cut.
        lost: ‖A − A_k‖ / ‖A‖ of the truncation, apart from the factor.
    """

    kind: Kind
    factor: float | None = None
    smaller: Literal["A", "B"] | None = None
    ranks: tuple[int, int] | None = None
    lost: float = 0.0

    @property
    def is_copy(self) -> bool:
        """True if one of the two holds what the other does, or a truncation of it."""
        return self.kind not in ("other", "nothing")

    def full_words(
        self, names: tuple[str, str], forms: tuple[str, str], *, refactored: bool = False
    ) -> str:
        """Return the relation in words, with what else differs between the two files.

        Args:
            forms: dialect and type of both.
            refactored: whether the factors differ, of the same change.
        """
        said = self.words(*names) + (", in another factorisation" if refactored else "")
        return said if forms[0] == forms[1] else f"{said}, converted ({forms[0]}, {forms[1]})"

    def words(self, a: str = "A", b: str = "B") -> str:
        """Return the relation in words, for copies."""
        if self.kind == "same":
            return f"{b} is the same adapter as {a}"
        if self.kind == "rounded":
            return f"{b} is {a} up to rounding"
        if self.kind == "rescaled":
            return f"{b} is {a} times {self.factor:.4g}"
        if self.kind != "resized" or self.ranks is None or self.factor is None:
            return f"{b} is another adapter than {a}"
        large, small, factor = (
            (a, b, self.factor) if self.smaller == "B" else (b, a, 1 / self.factor)
        )
        low, high = self.ranks
        ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
        scaled = "" if abs(factor - 1) < ROUNDED else f" times {factor:.3g} and"
        return f"{small} is {large}{scaled} resized to {ranks}: relative error {self.lost:.2g}"


def may_be_cut(total: Moments) -> bool:
    """Return whether spectra can show that one of two adapters is a truncation of the other."""
    cosine = total.cosine
    return cosine is not None and _LEAST < cosine <= 1 - ROUNDED**2


def kinship(total: Moments, spectra: Spectra = ()) -> Kinship:
    """Return the relation of two adapters.

    Args:
        total: their moments over all modules; one that an adapter lacks counts as zero.
        spectra: needed to tell truncations.
    """
    cosine, fit = total.cosine, total.fit
    if cosine is None or fit is None:
        return Kinship("nothing")
    if total.distance <= EQUAL:
        return Kinship("same", 1.0)
    if total.distance <= ROUNDED:
        return Kinship("rounded", 1.0)
    if cosine > 1 - ROUNDED**2:
        return Kinship("rescaled", fit)
    pairs = list(spectra) if may_be_cut(total) else []
    factor = total.bb / total.ab if total.ab else None
    found = _truncated(cosine, pairs)
    if found is not None:
        return Kinship("resized", factor, "B", *found)
    found = _truncated(cosine, [(b, a) for a, b in pairs])
    if found is not None:
        return Kinship("resized", fit, "A", *found)
    return Kinship("other")


def _truncated(
    cosine: float, pairs: list[tuple[Array, Array]]
) -> tuple[tuple[int, int], float] | None:
    """Return the ranks and the loss of a truncation, None where it is not one.

    Args:
        pairs: singular values of the whole and of what may be its truncation.
    """
    cut = [len(small) for large, small in pairs if len(small) < len(large)]
    if not cut or any(len(small) > len(large) for large, small in pairs):
        return None
    whole = math.fsum(float((large**2).sum()) for large, _ in pairs)
    tail = math.fsum(float((large[len(small) :] ** 2).sum()) for large, small in pairs)
    lost, missing = tail / whole, 1 - cosine**2
    captured = cosine**2 / (1 - lost) if lost < 1 else 0.0
    if lost <= ROUNDED**2 or captured < _CAPTURED or missing > _NEAR * lost + ROUNDED**2:
        return None
    return (min(cut), max(cut)), math.sqrt(lost)
