"""SVC: a sum, or the result of another method, in which shared directions are counted once."""

from __future__ import annotations

from collections.abc import Iterable

from loramerge.algebra.arrays import Array
from loramerge.algebra.operator import NoParameters
from loramerge.algebra.operators import operator
from loramerge.algebra.spectra import spectrum, summed, weighted
from loramerge.algebra.views import Cores


def correct(result: Array, changes: Iterable[Array]) -> Array:
    """Lower the directions of a result in which it is larger than the changes that it is made of.

    With X = U diag(σ) Vᵀ and n changes Δᵢ: σᵣ becomes σᵣ n / Σ max(1, sᵣᵢ),
    sᵣᵢ = ⟨uᵣᵀX, uᵣᵀΔᵢ⟩ / ‖uᵣᵀΔᵢ‖².

    Args:
        result: X, `(m, n)`.
        changes: weighted, of the same shape.
    """
    import numpy as np

    found = spectrum(result)
    whole = found.sizes[:, None] * found.right
    counted, count = np.zeros_like(found.sizes), 0
    for change in changes:
        own = found.left.T @ change
        energy = (own**2).sum(axis=1)
        present = energy > 1e-18 * found.sizes**2
        times = (whole * own).sum(axis=1) / np.where(present, energy, 1.0)
        counted += np.maximum(1.0, np.where(present, times, 1.0))
        count += 1
    return found.with_sizes(found.sizes * count / np.where(counted == 0, 1.0, counted))


@operator(
    space="factors",
    scale="norm-match",
    correct=correct,
    order=64,
    formula=(
        "ΔW = U diag(γσ) Vᵀ for X = Σ wᵢ ΔWᵢ = U diag(σ) Vᵀ, γᵣ = n / Σ max(1, sᵣᵢ), "
        "sᵣᵢ = ⟨uᵣᵀX, uᵣᵀwᵢΔWᵢ⟩ / ‖uᵣᵀwᵢΔWᵢ‖²"
    ),
    source="Singular value calibration, arXiv 2602.05536",
    laws=(
        "gauge",
        "homogeneous",
        "order",
        "zero",
        "alone",
        "rotation",
        "rank bound",
        "repeatable",
        "sign",
        "duplicates",
        "orthogonal",
    ),
)
def svc(terms: Cores, parameters: NoParameters) -> Array:
    """Add, then lower the directions that several adapters share.

    A safe choice for three adapters and more. Copies of one adapter give that adapter. It can also
    correct the result of another method.
    """
    changes = weighted(terms)
    return correct(summed(changes), changes)


OPERATOR = svc
