"""Groups of keys that the rest of their file explains.

Stems that several dialects spell alike belong to the dialect of the file that writes them:
`transformer.final_layer.linear` of Flux.1 is OneTrainer's, and in other families a key of diffusers. And
magnitudes of DoRA may keep diffusers' name where the factors have kohya's, as SimpleTuner writes them
for ComfyUI.
"""

from __future__ import annotations

from collections.abc import Sequence

from loramerge.dialects import DIALECTS, stem_table
from loramerge.dialects.classify import Group
from loramerge.families import Family

__all__ = ["with_owners"]

_MAGNITUDE, _FACTORS = {"magnitude"}, {"down", "up"}


def with_owners(groups: Sequence[Group], family: Family | None) -> list[Group]:
    """Return the groups, each in a dialect that writes its stem, if the file has one."""
    names = list(dict.fromkeys(group.dialect for group in groups))
    if family is None or len(names) < 2:
        return list(groups)
    owned = [group._replace(dialect=_owner(group, family, names)) for group in groups]
    return _with_magnitudes(owned, family)


def _with_magnitudes(groups: Sequence[Group], family: Family) -> list[Group]:
    """Return the groups, magnitudes alone with the factors of their module."""
    alone = {
        _modules(group, family): group.roles for group in groups if group.roles.keys() == _MAGNITUDE
    }
    alone.pop((), None)
    found, taken = [], set[tuple[str, ...]]()
    for group in groups if alone else ():
        modules = _modules(group, family)
        if (
            modules in alone
            and group.roles.keys() >= _FACTORS
            and not group.roles.keys() & _MAGNITUDE
        ):
            group = group._replace(roles={**group.roles, **alone[modules]})
            taken.add(modules)
        found.append(group)
    return [
        group
        for group in (found or groups)
        if group.roles.keys() != _MAGNITUDE or _modules(group, family) not in taken
    ]


def _modules(group: Group, family: Family) -> tuple[str, ...]:
    stem = stem_table(DIALECTS[group.dialect], family).get(group.stem)
    return () if stem is None else stem.modules


def _owner(group: Group, family: Family, names: Sequence[str]) -> str:
    if _writes(group.dialect, family, group.stem) is not False:
        return group.dialect
    others = (name for name in names if _writes(name, family, group.stem))
    return next(others, group.dialect)


def _writes(dialect: str, family: Family, stem: str) -> bool | None:
    """Return whether a dialect writes a stem or only reads it, None if it does not have it."""
    found = stem_table(DIALECTS[dialect], family).get(stem)
    return None if found is None else DIALECTS[dialect].forms[found.form].written
