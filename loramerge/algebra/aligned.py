"""The space of KnOTS: all adapters between the output directions that they share.

`[ΔW₁ | … | ΔWₙ] = U S [V₁ | … | Vₙ]`: the Vᵢ, `(R, in·kh·kw)`, describe every adapter by the same
directions, so that operators on elements can compare their entries.

Source: KnOTS, arXiv 2410.19735.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from loramerge.algebra.arrays import Array
from loramerge.algebra.spectra import spectrum
from loramerge.algebra.views import Cores
from loramerge.parameters import Doc

__all__ = ["Alignment", "merge_aligned"]


@dataclass(frozen=True)
class Alignment:
    """The entries that operators in the space of KnOTS work on."""

    entries: Annotated[
        Literal["unit", "sized"],
        Doc(
            "Entries of the shared directions at unit length (the paper), or times their singular "
            "values (the authors' program)."
        ),
    ] = "unit"


def merge_aligned(terms: Cores, parameters: Alignment, merge: Callable[[Cores], Array]) -> Array:
    """Return `U S merge(V)`, or `U merge(S V)`, as rows of the left basis, `(p, in·kh·kw)`.

    Args:
        terms: of an operator on `columns`.
        merge: function of the same terms with Vᵢ, or S Vᵢ, as values, that gives one of their shape.
    """
    import numpy as np

    # downs by their triangular factors: the same left vectors and singular values, far less wide
    small = [up @ _triangle(down).T for up, down in terms.factors]
    found = spectrum(np.concatenate(small, axis=1))
    back = found.left if parameters.entries == "sized" else found.left * found.sizes
    ahead = found.left if parameters.entries == "sized" else found.left / found.sizes
    values = tuple(ahead.T @ core for core in terms.values)
    result: Array = back @ merge(replace(terms, values=values))
    return result


def _triangle(down: Array) -> Array:
    """Return R of `downᵀ = Q R`, so that `Rᵀ R` is `down downᵀ`."""
    import numpy as np

    found: Array = np.linalg.qr(down.T, mode="r")
    return found
