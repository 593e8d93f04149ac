"""Stems that several dialects spell alike: each belongs to the dialect of its file that writes it.

`transformer.final_layer.linear` of Flux.1 is OneTrainer's, and in other families a key of diffusers. So
diffusers' dialect reads it, and the rest of the file says whose it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from loramerge.dialects import DIALECTS, stem_table
from loramerge.dialects.classify import Group
from loramerge.families import Family

__all__ = ["with_owners"]


def with_owners(groups: Sequence[Group], family: Family | None) -> list[Group]:
    """Return the groups, each in a dialect that writes its stem, if the file has one."""
    names = list(dict.fromkeys(group.dialect for group in groups))
    if family is None or len(names) < 2:
        return list(groups)
    return [group._replace(dialect=_owner(group, family, names)) for group in groups]


def _owner(group: Group, family: Family, names: Sequence[str]) -> str:
    if _writes(group.dialect, family, group.stem) is not False:
        return group.dialect
    others = (name for name in names if _writes(name, family, group.stem))
    return next(others, group.dialect)


def _writes(dialect: str, family: Family, stem: str) -> bool | None:
    """Return whether a dialect writes a stem or only reads it, None if it does not have it."""
    found = stem_table(DIALECTS[dialect], family).get(stem)
    return None if found is None else DIALECTS[dialect].forms[found.form].written
