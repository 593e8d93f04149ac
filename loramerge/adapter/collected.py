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
        covered: every module and parameter that has a delta → the stem it is spelled with.
        aside: whether a group is spelled as its dialect is read but never written.
    """

    def __init__(self) -> None:
        self.deltas: dict[Site, Delta] = {}
        self.account = Account()
        self.problems: list[Problem] = []
        self.spelling: dict[tuple[Site, str], tuple[str, str]] = {}
        self.stems: dict[str, dict[str, str]] = {}
        self.covered: dict[tuple[str, str], str] = {}
        self.dialects = Counter[str]()
        self.unknown: list[str] = []
        self.aside = False

    def add(self, group: Group, sites: Mapping[Site, tuple[Delta, tuple[str, ...]]]) -> set[str]:
        """Add a group's deltas to those read; return the roles that were taken.

        A module that the file spells twice is an error, because either could be meant, unless both
        are equal to the last bit.
        """
        taken, covered = set[str](), self.covered
        for site, (delta, roles) in sites.items():
            places = [(module, site.parameter) for module in site.modules]
            before = next((covered[place] for place in places if place in covered), None)
            here = [role for role in roles if role in group.roles]
            if before is not None and not (
                site in self.deltas and identical(self.deltas[site], delta)
            ):
                self.problems.append(spelled_twice(site.name, before, group.stem))
                continue
            taken.update(here)
            self.account.used.extend(group.roles[role] for role in here)
            if before is not None:
                self.problems.append(spelled_alike(site.name))
                continue
            self.deltas[site] = delta
            covered.update(dict.fromkeys(places, group.stem))
            for role in here:
                self.spelling[site, role] = (group.dialect, group.roles[role])
        if any(
            site in self.deltas and covered[site.modules[0], site.parameter] == group.stem
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
