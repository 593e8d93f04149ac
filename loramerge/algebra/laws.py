"""Names of the laws that merge operators can claim.

An operator that claims a law is tested for it. The tests keep, for each law, implementations with the
field's real errors that must fail it.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["LAWS"]

LAWS: Mapping[str, str] = {
    "sum": "The result is Σ wᵢ ΔWᵢ, computed from dense matrices in float64.",
    "gauge": "Other factors of the same ΔW (down → G down, up → up G⁻¹) give the same result.",
    "homogeneous": "Multiplying all weights by c multiplies the result by c.",
    "order": "The order of the inputs does not matter.",
    "zero": "An adapter of weight 0 changes nothing.",
    "alone": "A module that only one adapter has becomes its weight times its ΔW.",
    "halves": "An adapter at ½ with itself at ½ is the adapter.",
    "duplicates": "Copies of one adapter, each at weight 1, are that adapter.",
    "sign": "A negative weight is the same as its size and the opposite adapter.",
    "orthogonal": "Adapters without common directions are added, apart from the final scale.",
    "expectation": "The mean over many seeds is the sum, apart from the final scale.",
    "seeds": "One seed gives one result, and another seed another.",
    "linear": "mix(a:u, b:v) + mix(a:x, b:y) = mix(a:u+x, b:v+y).",
    "opposites": "An adapter at w and at −w cancel.",
    "numerical rank": "Directions that adapters share are kept once.",
    "rotation": "Rotating the rows or columns of every ΔW rotates the result.",
    "rank bound": "No module has a higher rank than the operator predicts from the ranks of the inputs.",
    "repeatable": "The same inputs give the same bytes, on any number of threads.",
}
