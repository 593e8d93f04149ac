"""The parts of an adapter, collected group by group: its deltas, and what became of every key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from loramerge.adapter.delta import Delta, identical
from loramerge.adapter.info import Account, Problem
from loramerge.adapter.problems import said_twice, spelled_alike, spelled_twice
from loramerge.adapter.site import Site
from loramerge.dialects import DIALECTS, stem_table
from loramerge.dialects.classify import Group
from loramerge.dialects.detection import Detection
from loramerge.errors import nearest
from loramerge.files.tensors import Tensor, same_bytes

__all__ = ["Collected"]

_NEAREST_MOST = 20  # unknown keys for which the nearest known key is searched


class Collected:
    """The parts of an adapter, collected group by group.

    Args:
        covered: parameter → every module that has a delta of it → the stem it is spelled with.
        aside: whether a group is spelled as its dialect is read but never written.
        usual: key → the one to write, of names that no program reads.
    """

    def __init__(self) -> None:
        self.deltas: dict[Site, Delta] = {}
        self.account = Account()
        self.problems: list[Problem] = []
        self.spelling: dict[tuple[Site, str], tuple[str, str]] = {}
        self.stems: dict[str, dict[str, str]] = {}
        self.covered: dict[str, dict[str, str]] = {}
        self.dialects = Counter[str]()
        self.unknown: list[str] = []
        self.aside = False
        self.usual: dict[str, str] = {}

    def add(self, group: Group, sites: Mapping[Site, tuple[Delta, tuple[str, ...]]]) -> set[str]:
        """Add a group's deltas to those read; return the roles that were taken.

        A module that the file spells twice is an error, because either could be meant, unless both
        are equal to the last bit.
        """
        taken: set[str] = set()
        placed, keys = False, group.roles
        for site, (delta, roles) in sites.items():
            covered = self.covered.setdefault(site.parameter, {})
            again = not covered.keys().isdisjoint(site.modules)
            if again and not (site in self.deltas and identical(self.deltas[site], delta)):
                before = next(covered[module] for module in site.modules if module in covered)
                self.problems.append(spelled_twice(site.name, before, group.stem))
                continue
            for role in roles:
                if role in keys:
                    taken.add(role)
                    self.account.used.append(keys[role])
                    if not again:
                        key = self.usual.get(keys[role], keys[role])
                        self.spelling[site, role] = (group.dialect, key)
            if again:
                self.problems.append(spelled_alike(site.name))
                continue
            placed = True
            self.deltas[site] = delta
            for module in site.modules:
                covered[module] = group.stem
        if placed or any(
            site in self.deltas and self.covered[site.parameter][site.modules[0]] == group.stem
            for site in sites
        ):
            self.dialects[group.dialect] += 1
        return taken

    def account_for_doubled(
        self, doubled: Sequence[tuple[str, str]], tensors: Mapping[str, Tensor]
    ) -> None:
        """Account for keys that repeat another key of their stem."""
        used = set(self.account.used) if doubled else set()
        for key, before in doubled:
            if before not in used:
                self.account.unknown[key] = None
            elif same_bytes(tensors[key], tensors[before]):
                self.account.used.append(key)
                self.problems.append(spelled_alike(key))
            else:
                self.account.unknown[key] = before
                self.problems.append(said_twice(key, before))

    def account_for_unknown(self, detection: Detection, dialect: str | None) -> None:
        """Account for unknown keys; the first few get the nearest stem that the dialect knows."""
        family = detection.naming
        if family is None or dialect is None:
            self.account.unknown.update(dict.fromkeys(self.unknown))
            return
        stems = stem_table(DIALECTS[dialect], family) if self.unknown else {}
        for i, key in enumerate(self.unknown):
            stem = key.partition(".lora")[0].partition(".alpha")[0]
            self.account.unknown[key] = nearest(stem, stems) if i < _NEAREST_MOST else None
