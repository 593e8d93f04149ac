"""Adapter key conventions as data. See `spec` for what a dialect is and `tables` for the literals."""

from __future__ import annotations

from loramerge.dialects.spec import Dialect, Form, Fused, Stem, stem_table
from loramerge.dialects.tables import (
    DIFFUSERS,
    DIFFUSERS_LEGACY,
    KOHYA,
    LORA_DIFFUSION,
    LYCORIS,
    PEFT,
)
from loramerge.dialects.transformer_tables import BARE, COMFYUI, ONETRAINER, XLABS
from loramerge.errors import FormatError, nearest
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
]

_ALL = (
    KOHYA, DIFFUSERS, DIFFUSERS_LEGACY, PEFT, LORA_DIFFUSION, COMFYUI, ONETRAINER, XLABS, BARE, LYCORIS,
)  # fmt: skip
DIALECTS: dict[str, Dialect] = {d.name: d for d in _ALL}

# program (as in --for) → the dialect it reads best, if the family does not say another
PROGRAMS: dict[str, str] = {
    "comfyui": "kohya",
    "a1111": "kohya",
    "forge": "kohya",
    "kohya": "kohya",
    "invokeai": "kohya",
    "diffusers": "diffusers",
    "peft": "peft",
}


def programs_of(name: str) -> list[str]:
    """Return the programs that `--for` means a dialect by; some only for certain families."""
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
        close = nearest(name, DIALECTS)
        raise FormatError(
            f"unknown dialect {name!r}",
            expected=", ".join(DIALECTS),
            hint=f"did you mean {close}?" if close else None,
        ) from None
