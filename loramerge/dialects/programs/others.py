"""Words for the changes that programs compute in the place of what is defined.

`adapter.elsewhere` has their formulas.
"""

from __future__ import annotations

__all__ = [
    "ALL_BY_INPUTS",
    "BASE_NORM",
    "DORA_OF_OUTPUTS",
    "NO_CORE",
    "NO_FACTORS",
    "NO_MAGNITUDES",
    "OTHERS",
    "OTHER_CONSTRAINT",
]

BASE_NORM = "DoRA is normalised by the base's outputs rather than by the changed ones"
ALL_BY_INPUTS = "DoRA is normalised by inputs, also where it is of outputs"
NO_MAGNITUDES = "the magnitudes of DoRA are left out"
NO_CORE = "a LoKr with a core changes nothing"
NO_FACTORS = "the factors of the outputs are left out"
OTHER_CONSTRAINT = "the constraint is counted otherwise"

# DoRA of outputs over factors of any kind that tests have given programs
DORA_OF_OUTPUTS = ("dora of outputs", "dora of outputs over loha", "dora of outputs over lokr")

OTHERS = (BASE_NORM, ALL_BY_INPUTS, NO_MAGNITUDES, NO_CORE, NO_FACTORS, OTHER_CONSTRAINT)
