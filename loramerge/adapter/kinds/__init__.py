"""The kinds of deltas: one file per kind, imported when the tensors of a file ask for it.

A file here, or an entry point of the group `loramerge.kinds`, declares one kind or several in `KINDS`.
What is known of kinds is handed to the dialects as an argument (`Words`): they stand below, and know
only their own words, which are those of ordinary LoRA.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from loramerge.dialects.words import NO_WORDS, Words
from loramerge.discovery import entry_points
from loramerge.errors import FormatError, ShapeError
from loramerge.files.dtypes import DTYPES, FLOATS
from loramerge.records import NamedTuple

if TYPE_CHECKING:
    from loramerge.adapter.kinds.declaration import BiasMaker, Kind, MadeDelta, Maker, Stored

__all__ = [
    "ENTRY_POINTS",
    "all_words",
    "indicated",
    "known_kinds",
    "make_biases",
    "make_deltas",
    "make_weight",
    "marks",
    "words_for",
]

ENTRY_POINTS = "loramerge.kinds"
_USUAL = ("lora", "full")  # all that most files need
_SCALES = frozenset({"alpha", "scale"})


@cache
def known_kinds() -> tuple[Kind, ...]:
    """Return every kind, in the order in which modules are tried for them.

    Raises:
        FormatError: if two kinds have one name or one suffix.
    """
    from pkgutil import iter_modules

    found = _declared(*sorted(name for _, name, package in iter_modules(__path__) if not package))
    for point in entry_points(ENTRY_POINTS):
        found += getattr(point.load(), "KINDS", ())
    found.sort(key=lambda kind: (kind.whole, not kind.wraps, kind.name))
    _require_distinct(found)
    return tuple(found)


@cache
def _usual_kinds() -> tuple[Kind, ...]:
    return tuple(_declared(*_USUAL))


def _declared(*modules: str) -> list[Kind]:
    found = (import_module(f"{__name__}.{module}") for module in modules)
    return [kind for module in found for kind in getattr(module, "KINDS", ())]


def _require_distinct(kinds: list[Kind]) -> None:
    """Refuse kinds that could be taken for each other."""
    owner: dict[tuple[str, ...], str] = {}
    for kind in kinds:
        claims: list[tuple[str, ...]] = [("name", kind.name)]
        for container, words in kind.suffixes.items():
            claims += [(f"suffix of {container}", s) for ends in words.values() for s in ends]
        for claim in claims:
            if owner.setdefault(claim, kind.name) != kind.name or claims.count(claim) > 1:
                raise FormatError(
                    f"two kinds of deltas have one {claim[0]}",
                    module=claim[1],
                    found=f"{owner[claim]} and {kind.name}",
                    hint="rename it in one of them",
                )


@cache
def _usual_roles() -> frozenset[str]:
    return _SCALES.union(*(kind.roles for kind in _usual_kinds()))


def _kinds_for(roles: Set[str]) -> tuple[Kind, ...]:
    """Return the usual kinds where they know all roles, else every kind."""
    return _usual_kinds() if roles <= _usual_roles() else known_kinds()


def indicated(roles: Set[str]) -> list[Kind]:
    """Return the kinds that any of a module's roles indicates, in the order in which they are tried."""
    return [kind for kind in _kinds_for(roles) if not roles.isdisjoint(kind.roles)]


def make_weight(stored: Stored) -> MadeDelta | None:
    """Return the delta of the weight, None if partners are missing.

    Raises:
        ShapeError: if tensors do not fit together, or hold other than floating-point numbers.
    """
    return _weight_of(stored, _makers_for(stored))


def make_deltas(stored: Stored) -> tuple[MadeDelta | None, list[MadeDelta]]:
    """Return what `make_weight` and `make_biases` give.

    Raises:
        ShapeError: see `make_weight`.
    """
    makers = _makers_for(stored)
    weight = _weight_of(stored, makers)
    return weight, list(_biases_of(stored, weight, makers)) if makers.of_others else []


def _weight_of(stored: Stored, makers: _Makers) -> MadeDelta | None:
    _require_floats(stored, makers.free)
    for make in makers.of_weight:
        made = make(stored)
        if made is not None:
            return made
    return None


class _Makers(NamedTuple):
    """The makers of deltas for all modules with the same roles.

    Args:
        free: roles whose tensors may be of whole numbers.
        of_weight: give the delta of the weight, tried in this order.
        of_others: give the deltas of other parameters.
    """

    free: Set[str]
    of_weight: tuple[Maker, ...]
    of_others: tuple[BiasMaker, ...]


def _makers_for(stored: Stored) -> _Makers:
    roles = frozenset(stored.tensors)
    return _usual_makers(roles) or _makers_of(roles, known_kinds())


@cache
def _usual_makers(roles: frozenset[str]) -> _Makers | None:
    """Return the makers where the usual kinds know all roles, else None."""
    return _makers_of(roles, _usual_kinds()) if roles <= _usual_roles() else None


@cache
def _makers_of(roles: frozenset[str], kinds: tuple[Kind, ...]) -> _Makers:
    found = [kind for kind in kinds if not roles.isdisjoint(kind.roles)]
    partnered = [kind for kind in found if not kind.whole]
    # the first, and those that shapes tell from it
    first = [kind for kind in partnered if kind.roles == partnered[0].roles]
    tried = (*first, *(kind for kind in found if kind.whole))
    beside = (kind for kind in kinds if not kind.roles or kind in found)
    return _Makers(
        _SCALES.union(*(kind.integers for kind in found)),
        tuple(kind.make for kind in tried if kind.make is not None),
        tuple(kind.make_bias for kind in beside if kind.make_bias is not None),
    )


def _require_floats(stored: Stored, free: Set[str]) -> None:
    """Refuse whole, logical and complex numbers as weights.

    Args:
        free: roles that may be such.

    Raises:
        ShapeError: naming the role and its type.
    """
    for role, tensor in stored.tensors.items():
        if tensor.dtype not in FLOATS and role not in free:
            raise ShapeError(
                f"{role} is of type {DTYPES[tensor.dtype].word}, not a floating-point type",
                module=stored.module,
            )


def make_biases(stored: Stored, weight: MadeDelta | None) -> Iterator[MadeDelta]:
    """Yield the deltas of other parameters than the weight; the last of one parameter applies."""
    return _biases_of(stored, weight, _makers_for(stored))


def _biases_of(stored: Stored, weight: MadeDelta | None, makers: _Makers) -> Iterator[MadeDelta]:
    for make in makers.of_others:
        made = make(stored, weight)
        if made is not None:
            yield made


@cache
def all_words() -> Words:
    """Return the spellings of all kinds, for the dialects."""
    words: dict[str, dict[str, tuple[str, ...]]] = {}
    for kind in known_kinds():
        for container, roles in kind.suffixes.items():
            words.setdefault(container, {}).update(roles)
    return Words(words)


def words_for(roles: Set[str]) -> Words:
    """Return the words a dialect needs for roles beside its own."""
    return NO_WORDS if roles <= _usual_roles() else all_words()


def marks(roles: Set[str]) -> Set[str]:
    """Return those roles by which a module is known again when it is written."""
    return roles & {role for kind in _kinds_for(roles) for role in kind.always}
