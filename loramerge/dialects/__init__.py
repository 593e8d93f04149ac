"""Adapter key conventions as data, one file each in `known/`. See `spec` for the parts of a dialect.

Other packages add dialects by the entry point `loramerge.dialects`.
"""

from __future__ import annotations

from collections.abc import Mapping

from loramerge.dialects.spec import Dialect, Form, Fused, Stem, stem_table
from loramerge.discovery import Registry
from loramerge.errors import FormatError, suggestion
from loramerge.families import FAMILIES

__all__ = [
    "DIALECTS",
    "PROGRAMS",
    "Dialect",
    "Form",
    "Fused",
    "Stem",
    "dialect",
    "programs_of",
    "stem_table",
    "usual_dialect",
]

DIALECTS: Registry[Dialect] = Registry(
    "loramerge.dialects", "DIALECT", {f"{__name__}.known": f"{__path__[0]}/known"}
)

# program (as in --for) → the dialect it reads best, if the family does not say another
PROGRAMS: Mapping[str, str] = {
    program: dialect.name for dialect in DIALECTS.known() for program in dialect.programs
}


def usual_dialect() -> Dialect:
    """Return the dialect to write where nothing else is known: the one that most programs read."""
    return DIALECTS.known()[0]


def programs_of(name: str) -> list[str]:
    """Return the programs whose `--for` means a dialect; some only for certain families."""
    usual = [program for program, dialect in PROGRAMS.items() if dialect == name]
    special: dict[str, list[str]] = {}
    for family in FAMILIES.values():
        for program, dialect in family.programs.items():
            if dialect == name:
                special.setdefault(program, []).append(family.name)
    return usual + [f"{program} ({', '.join(found)})" for program, found in special.items()]


def dialect(name: str) -> Dialect:
    """Return a dialect by name.

    Raises:
        FormatError: if there is none, naming the nearest.
    """
    try:
        return DIALECTS[name]
    except KeyError:
        raise FormatError(
            f"unknown dialect {name!r}",
            expected=", ".join(DIALECTS),
            hint=suggestion(name, DIALECTS),
        ) from None
