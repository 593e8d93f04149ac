"""TSV-M on cores: singular vectors of all adapters made orthogonal to each other."""

import loramerge as lm


def _polar(matrix):
    import numpy as np

    left, sizes, right = np.linalg.svd(matrix, full_matrices=False)
    kept = sizes > 1e-9 * sizes[:1].sum()
    return left[:, kept] @ right[kept]


@lm.operator(
    space="factors",
    name="orthogonal",
    formula="Û diag(σ) V̂ᵀ, Û and V̂ the polar factors of all singular vectors side by side",
    source="Task Singular Vectors, arXiv 2412.00081",
    laws=("gauge", "homogeneous", "order", "zero", "alone", "rotation", "rank bound", "repeatable"),
)
def orthogonal(terms, parameters):
    """Make the singular vectors of all adapters orthogonal before adding.

    When adapters share directions that a sum would count twice.
    """
    import numpy as np

    found = []
    for weight, core in zip(terms.weights, terms.values, strict=True):
        left, sizes, right = np.linalg.svd(weight * core, full_matrices=False)
        kept = sizes > 1e-7 * sizes[:1].sum()
        found.append((left[:, kept], sizes[kept], right[kept]))
    left = _polar(np.concatenate([one for one, _, _ in found], axis=1))
    right = _polar(np.concatenate([one.T for _, _, one in found], axis=1))
    return (left * np.concatenate([one for _, one, _ in found])) @ right.T
