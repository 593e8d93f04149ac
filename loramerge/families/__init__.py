"""Base architectures as data: modules, shapes, and names in each kind of checkpoint and adapter.

`FAMILIES` maps the words users type to `Family` literals. A family is one file in `unets/` or
`transformers/`, called as the family, whose `FAMILY` states every fact about it; templates that
relatives share (`flux2`, `sd3`, …) and parts (`clip`, `t5`, …) lie beside. Other
packages add families by the entry point `loramerge.families`.
"""

from __future__ import annotations

from loramerge.discovery import Registry
from loramerge.errors import FamilyError, suggestion
from loramerge.families.spec import (
    Component,
    Family,
    Metadata,
    Module,
    Parameter,
    Slot,
    Spelling,
    parameters,
)

__all__ = [
    "FAMILIES",
    "UNETS",
    "Component",
    "Family",
    "Metadata",
    "Module",
    "Parameter",
    "Slot",
    "Spelling",
    "family",
    "parameters",
]

UNETS = f"{__name__}.unets"  # the package of those whose denoiser is a UNet
FAMILIES: Registry[Family] = Registry(
    "loramerge.families",
    "FAMILY",
    {f"{__name__}.{part}": f"{__path__[0]}/{part}" for part in ("unets", "transformers")},
)


def family(name: str) -> Family:
    """Return a family by name.

    Raises:
        FamilyError: if there is none, naming the nearest.
    """
    try:
        return FAMILIES[name]
    except KeyError:
        raise FamilyError(
            f"unknown family {name!r}",
            expected=", ".join(FAMILIES),
            hint=suggestion(name, FAMILIES),
        ) from None
