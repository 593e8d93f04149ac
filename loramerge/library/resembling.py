"""The adapters of the index that resemble one, and those that are copies of each other.

Sketches find what may be related; the figures and words are then those of an exact comparison.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loramerge.algebra.compare import Comparison, compare
from loramerge.algebra.kinship import Kinship
from loramerge.algebra.sketch import RELATED
from loramerge.errors import LoramergeError
from loramerge.events import Notify, Progress, ignore
from loramerge.library.contents import form, unit_sketch
from loramerge.library.entries import Entry, entries
from loramerge.library.index import Index
from loramerge.library.sketches import Sketches

if TYPE_CHECKING:
    from loramerge.adapter import Adapter
    from loramerge.algebra.arrays import Array

__all__ = ["Copies", "Duplicates", "Resembling", "duplicates", "nearest", "similar"]

_SEEN = 0.1  # cosine of sketches from which a pair may be copies: few unrelated ones have it
_HELD = 8  # adapters whose factors are kept between comparisons
_SPARE = 10  # candidates beyond those asked for, because sketches order them only nearly
_EQUAL = 1e-4  # distance from 1 of the cosine of sketches of a rescaled or rounded copy, at most


@dataclass(frozen=True)
class Resembling:
    """An adapter that resembles another.

    Args:
        cosine: of the two changes.
        exact: false for an estimate by sketches, which is within a few hundredths.
        words: the relation.
        copy: whether one holds what the other does.
        factor: of the other in this one; None for others than copies.
        problem: why there is no exact figure, where it was looked for.
    """

    entry: Entry
    cosine: float
    exact: bool
    words: str
    copy: bool = False
    kind: str | None = None
    factor: float | None = None
    problem: str | None = None

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        shown = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"path": self.entry.places[0].path} | shown | {"entry": self.entry.json()}


def nearest(index: Index, row: Array, most: int) -> list[tuple[int, float]]:
    """Return the contents whose sketches are nearest to one, with the cosines, the nearest first."""
    import numpy as np

    cosines = Sketches(index.folder).cosines(row)
    valid = _sketched(index)
    valid = valid[valid < len(cosines)]
    found = cosines[valid]
    count = min(most, len(found))
    if not count:
        return []
    chosen = np.argpartition(-np.abs(found), count - 1)[:count]
    chosen = chosen[np.lexsort((valid[chosen], -np.abs(found[chosen])))]
    return [(int(valid[n]), float(found[n])) for n in chosen]


def _sketched(index: Index) -> Array:
    """Return the numbers of the contents with a sketch and a place."""
    import numpy as np

    rows = index.rows(
        "SELECT id FROM contents WHERE sketched AND id IN (SELECT content FROM places) ORDER BY id"
    )
    return np.array([row[0] for row in rows], dtype=np.int64)


def similar(
    index: Index, adapter: Adapter, *, most: int = 10, notify: Notify = ignore
) -> list[Resembling]:
    """Return the adapters of the index that resemble one most, without its own file.

    Args:
        adapter: from a file, or computed.
        most: how many.

    Raises:
        LoramergeError: if the adapter has no change that can be compared.
    """
    row, reason = unit_sketch(adapter)
    if row is None:
        raise LoramergeError(
            f"nothing can be found that resembles this file: {reason}", file=adapter.info.path
        )
    own = adapter.info.path and os.path.realpath(adapter.info.path)
    near = dict(nearest(index, row, most + _SPARE))
    found = []
    for done, one in enumerate(entries(index, near), 1):
        others = [place for place in one.places if os.path.realpath(place.path) != own]
        if others:
            kept = Entry(one.content, tuple(others), one.missing, one.facts, one.own)
            found.append(_related(adapter, kept, near[one.content]))
        notify(Progress("comparing", done, len(near), "files"))
    found.sort(key=lambda one: -abs(one.cosine))
    return found[:most]


def _related(adapter: Adapter, other: Entry, estimate: float) -> Resembling:
    """Compare an adapter with one of the index, exactly where they may be related."""
    if abs(estimate) < RELATED:
        return Resembling(other, estimate, False, "unrelated")
    if other.missing:
        return Resembling(other, estimate, False, _loosely(estimate), problem="it is missing")
    try:
        found = compare(adapter, _load(other.places[0].path))
    except LoramergeError as error:
        return Resembling(other, estimate, False, _loosely(estimate), problem=error.problem)
    cosine = found.total.cosine
    related = found.kinship
    if not related.is_copy:
        exact = estimate if cosine is None else cosine
        return Resembling(other, exact, cosine is not None, _loosely(exact))
    name = Path(adapter.label).name
    forms = _form_of(adapter), form(dict(other.facts))
    words = _copy_in_words(related, found, (name, other.path.name), forms)
    return Resembling(other, cosine or 0.0, True, words, True, related.kind, related.factor)


def _copy_in_words(
    related: Kinship, found: Comparison, names: tuple[str, str], forms: tuple[str, str]
) -> str:
    return related.full_words(names, forms, refactored=found.refactored)


def _form_of(adapter: Adapter) -> str:
    from loramerge.files.dtypes import DTYPES

    types = "/".join(DTYPES[name].word for name in adapter.dtypes())
    return f"{' + '.join(adapter.info.dialects) or 'unknown'} {types}"


def _load(path: str) -> Adapter:
    from loramerge.adapter.load import load

    adapter = load(path)
    adapter.require_sound()
    return adapter


def _loosely(cosine: float) -> str:
    if cosine < -0.3:
        return "opposite"
    return "close" if cosine > 0.9 else "related" if cosine > 0.3 else "hardly related"


# --- copies


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


@dataclass
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
    every = _sketched(index)
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
        self._adapters[path] = found = found or _load(path)
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
        words = _copy_in_words(related, found, (a.path.name, b.path.name), forms)
        yield Copies(
            a, b, words, related.kind, related.factor, found.total.cosine or 0.0, related.smaller
        )
