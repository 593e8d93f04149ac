"""Signs of damage in an adapter: what its weights, alphas, names and header say about it."""

from __future__ import annotations

from loramerge.algebra.health.examination import Examination, examine, norm_of, symptoms_of
from loramerge.algebra.health.limits import LIMITS, Limit

__all__ = ["LIMITS", "Examination", "Limit", "examine", "norm_of", "symptoms_of"]
