"""The copies among the files of the index.

Sketches find the pairs that may be copies; an exact comparison says whether they are, and what relates
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loramerge.algebra.compare import compare
from loramerge.errors import LoramergeError
from loramerge.events import Notify, Progress, ignore
from loramerge.library.contents import form
from loramerge.library.entries import Entry, entries
from loramerge.library.index import Index
from loramerge.library.resembling import opened, sketched
from loramerge.library.sketches import Sketches

if TYPE_CHECKING:
    from loramerge.adapter import Adapter

__all__ = ["Copies", "Duplicates", "duplicates"]

_SEEN = 0.1  # cosine of sketches from which a pair may be copies: few unrelated ones have it
_HELD = 8  # adapters that stay open between comparisons
_EQUAL = 1e-4  # distance from 1 of the cosine of sketches of a rescaled or rounded copy, at most


@dataclass(frozen=True)
class Copies:
    """Two contents of which one holds what the other does.

    Args:
        smaller: which of the two is a truncation, `A` or `B`.
    """

    a: Entry
    b: Entry
    words: str
    kind: str
    factor: float | None
    cosine: float
    smaller: str | None = None


@dataclass(repr=False)
class Duplicates:
    """The copies in the index.

    Args:
        same: contents that lie at several places.
        pairs: contents of which one holds what the other does.
        groups: contents that such pairs join.
        files: how many there are.
        unchecked: pairs that may be copies and were not compared exactly.
        problems: path → why it was not compared.
    """

    files: int
    same: list[Entry] = field(default_factory=list)
    pairs: list[Copies] = field(default_factory=list)
    unchecked: int = 0
    problems: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        counts = f"{len(self.same)} at several places, {len(self.pairs)} pairs of copies"
        return f"<Duplicates among {self.files} files: {counts}>"

    def groups(self) -> list[tuple[Entry, list[Copies]]]:
        """Return the groups of copies: the file to keep, and a pair for each that could go.

        The one to keep is not a truncation, and has the widest type of numbers.
        """
        by_content: dict[int, list[Copies]] = {}
        for pair in self.pairs:
            for one in (pair.a, pair.b):
                by_content.setdefault(one.content, []).append(pair)
        known = {one.content: one for pair in self.pairs for one in (pair.a, pair.b)}
        left = sorted(known, key=lambda number: _to_keep(known[number], by_content[number]))
        found, seen = [], set[int]()
        for first in left:
            reached, group = [first], list[Copies]()
            for number in reached if first not in seen else ():
                seen.add(number)
                for pair in by_content[number]:
                    other = pair.b if pair.a.content == number else pair.a
                    if other.content not in seen:
                        seen.add(other.content)
                        reached.append(other.content)
                        group.append(pair)
            if group:
                found.append((known[first], group))
        return found

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {
            "files": self.files,
            "same": [[place.path for place in one.places] for one in self.same],
            "pairs": [
                {
                    "a": pair.a.places[0].path,
                    "b": pair.b.places[0].path,
                    "words": pair.words,
                    "kind": pair.kind,
                    "factor": pair.factor,
                    "cosine": pair.cosine,
                }
                for pair in self.pairs
            ],
            "groups": [
                {
                    "keep": kept.places[0].path,
                    "copies": sorted(
                        {one.places[0].path for pair in group for one in (pair.a, pair.b)}
                        - {kept.places[0].path}
                    ),
                }
                for kept, group in self.groups()
            ],
            "unchecked": self.unchecked,
            "problems": self.problems,
        }


def duplicates(index: Index, *, most: int = 2000, notify: Notify = ignore) -> Duplicates:
    """Return the copies among all files of the index that are there.

    Args:
        most: pairs that are compared exactly.
    """
    every = sketched(index)
    places = index.rows("SELECT content FROM places WHERE NOT missing AND content NOT NULL")
    here = {number for (number,) in places}
    several = index.rows(
        "SELECT content FROM places WHERE NOT missing AND content NOT NULL "
        "GROUP BY content HAVING count(*) > 1 ORDER BY min(path)"
    )
    result = Duplicates(len(places), same=entries(index, [row[0] for row in several]))
    rows = every[[int(number) in here for number in every]] if len(every) else every
    near = list(Sketches(index.folder).near_pairs(rows, _SEEN)) if len(rows) else []
    known = {n: one for n in {x for a, b, _ in near for x in (a, b)} for one in entries(index, [n])}
    near.sort(key=lambda pair: _order(pair, known))
    result.unchecked = len(near[most:])
    held = _Recent()
    chosen = sorted(near[:most])
    for done, (a, b, _) in enumerate(chosen, 1):
        result.pairs += _pair(known[a], known[b], held, result.problems)
        notify(Progress("comparing", done, len(chosen), "pairs"))
    result.pairs.sort(key=lambda pair: (pair.a.path, pair.b.path))
    return result


def _order(pair: tuple[int, int, float], known: dict[int, Entry]) -> tuple[bool, float]:
    """Put pairs first that are probably copies: rescaled ones, or of different ranks."""
    a, b, cosine = pair
    likely = abs(cosine) > 1 - _EQUAL or known[a].facts.get("ranks") != known[b].facts.get("ranks")
    return not likely, -abs(cosine)


def _to_keep(one: Entry, pairs: Sequence[Copies]) -> tuple[bool, int, str]:
    """Order the files of a group so that the one to keep comes first."""
    from loramerge.files.dtypes import DTYPES

    cut = any((pair.a if pair.smaller == "A" else pair.b) is one for pair in pairs if pair.smaller)
    types = one.facts.get("dtypes", ())
    bits = max((known.bits for known in DTYPES.values() if known.word in types), default=0)
    return cut, -bits, one.places[0].path


class _Recent:
    """The adapters that were compared last, so that none is opened for every pair."""

    def __init__(self) -> None:
        self._adapters: dict[str, Adapter] = {}

    def get(self, path: str) -> Adapter:
        found = self._adapters.pop(path, None)
        self._adapters[path] = found = found or opened(path)
        while len(self._adapters) > _HELD:
            self._adapters.pop(next(iter(self._adapters)))
        return found


def _pair(a: Entry, b: Entry, held: _Recent, problems: dict[str, str]) -> Iterator[Copies]:
    adapters: Sequence[Adapter] = ()
    for one in (a, b):
        path = one.places[0].path
        if path in problems:
            return
        try:
            adapters = (*adapters, held.get(path))
        except LoramergeError as error:
            problems[path] = error.problem
            return
    try:
        found = compare(*adapters)
    except LoramergeError as error:
        problems[a.places[0].path] = error.problem
        return
    related = found.kinship
    if related.is_copy:
        forms = form(dict(a.facts)), form(dict(b.facts))
        words = related.full_words((a.path.name, b.path.name), forms, refactored=found.refactored)
        yield Copies(
            a, b, words, related.kind, related.factor, found.total.cosine or 0.0, related.smaller
        )
