"""Tell a family from a larger or a smaller relative that has the same names of modules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from loramerge.dialects import DIALECTS, stem_table
from loramerge.dialects.classify import Group
from loramerge.families import Family

__all__ = ["of_larger_relative", "of_smaller_relative"]

_FEWEST = 5  # with fewer blocks of a sort, a file may hold a choice of them
_NUMBER = re.compile(r"\d+")


@cache
def _numberless(dialect: str, family: Family) -> frozenset[str]:
    """Return the stems of a family's network with their numbers taken out."""
    return frozenset(
        _NUMBER.sub("#", name)
        for name, stem in stem_table(DIALECTS[dialect], family).items()
        if not stem.modules[0].startswith("text_encoder")
    )


def of_larger_relative(family: Family, groups: Sequence[Group]) -> bool:
    """Return whether a file that resembles a family comes from a larger relative.

    It then has blocks of the family's sort with numbers that the family lacks.
    """
    return any(
        _NUMBER.sub("#", group.stem) in _numberless(group.dialect, family)
        for group in groups
        if stem_table(DIALECTS[group.dialect], family).get(group.stem) is None
    )


_BLOCK = re.compile(r"([^\d]*)\.(\d+)\.")


def _blocks(modules: Iterable[str]) -> dict[str, set[int]]:
    """Return the numbers of the blocks of each sort that contain modules."""
    found: dict[str, set[int]] = {}
    for module in modules:
        matched = _BLOCK.match(module)
        if matched:
            found.setdefault(matched[1], set()).add(int(matched[2]))
    return found


@cache
def _all_blocks(family: Family) -> Mapping[str, set[int]]:
    return _blocks(name for name, _ in family.modules())


def of_smaller_relative(family: Family, groups: Sequence[Group]) -> bool:
    """Return whether a file that resembles a family comes from a smaller relative.

    It then has the first n blocks of several sorts, without gaps, and the family has more of each.
    """
    stems = (stem_table(DIALECTS[group.dialect], family).get(group.stem) for group in groups)
    found = _blocks(stem.modules[0] for stem in stems if stem is not None)
    if sum(len(numbers) > _FEWEST for numbers in found.values()) < 2:
        return False  # as always for UNets; the family's own blocks need not be counted
    several = [
        (numbers, _all_blocks(family)[sort])
        for sort, numbers in found.items()
        if len(_all_blocks(family)[sort]) > _FEWEST
    ]
    return len(several) > 1 and all(
        _FEWEST < len(numbers) == max(numbers) + 1 < len(everything)
        for numbers, everything in several
    )
