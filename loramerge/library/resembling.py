"""The adapters of the index that resemble one.

Sketches find what may be related; the figures and words are then those of an exact comparison.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loramerge.algebra.compare import compare
from loramerge.algebra.sketch import RELATED
from loramerge.errors import AdapterError, LoramergeError
from loramerge.events import Notify, Progress, ignore
from loramerge.library.contents import form, unit_sketch
from loramerge.library.entries import Entry, entries
from loramerge.library.index import Index
from loramerge.library.sketches import Sketches

if TYPE_CHECKING:
    from loramerge.adapter import Adapter
    from loramerge.algebra.arrays import Array

__all__ = ["Resembling", "nearest", "opened", "similar", "sketched"]

_SPARE = 10  # candidates beyond those asked for, because sketches order them only nearly


@dataclass(frozen=True, repr=False)
class Resembling:
    """An adapter that resembles another.

    Args:
        cosine: of the two changes.
        exact: false for an estimate by sketches, which is within a few hundredths.
        words: the relation.
        copy: whether one holds what the other does.
        factor: of the other in this one; None for others than copies.
        problem: why the figure is an estimate; None if it is exact, or nothing exact was asked for.
    """

    entry: Entry
    cosine: float
    exact: bool
    words: str
    copy: bool = False
    kind: str | None = None
    factor: float | None = None
    problem: str | None = None

    def __repr__(self) -> str:
        near = "" if self.exact else "about "
        return f"<Resembling {self.entry.name}, cosine {near}{self.cosine:.3g}: {self.words}>"

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        shown = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"path": self.entry.places[0].path} | shown | {"entry": self.entry.json()}


def nearest(index: Index, row: Array, most: int) -> list[tuple[int, float]]:
    """Return the contents whose sketches are nearest to one, with the cosines, the nearest first."""
    import numpy as np

    valid = sketched(index)  # before the cosines: sketches are written before they are named
    found = Sketches(index.folder).cosines(row)[valid]
    count = min(most, len(found))
    if not count:
        return []
    chosen = np.argpartition(-np.abs(found), count - 1)[:count]
    chosen = chosen[np.lexsort((valid[chosen], -np.abs(found[chosen])))]
    return [(int(valid[n]), float(found[n])) for n in chosen]


def sketched(index: Index) -> Array:
    """Return the numbers of the contents with a place, and with a sketch that is not lost."""
    import numpy as np

    rows = index.rows(
        "SELECT id FROM contents WHERE sketched AND id IN (SELECT content FROM places) ORDER BY id"
    )
    room = Sketches(index.folder).count
    return np.array([row[0] for row in rows if 0 <= row[0] < room], dtype=np.int64)


def similar(
    index: Index, adapter: Adapter, *, most: int = 10, notify: Notify = ignore
) -> list[Resembling]:
    """Return the adapters of the index that resemble one most, without its own file.

    Args:
        adapter: from a file, or computed.
        most: how many.

    Raises:
        AdapterError: if the adapter has no change that can be compared.
    """
    row, reason = unit_sketch(adapter)
    if row is None:
        raise AdapterError(
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
        found = compare(adapter, opened(other.places[0].path))
    except LoramergeError as error:
        return Resembling(other, estimate, False, _loosely(estimate), problem=error.problem)
    cosine = found.total.cosine
    related = found.kinship
    if not related.is_copy:
        exact = estimate if cosine is None else cosine
        return Resembling(other, exact, cosine is not None, _loosely(exact))
    name = Path(adapter.label).name
    forms = _form_of(adapter), form(dict(other.facts))
    words = related.full_words((name, other.path.name), forms, refactored=found.refactored)
    return Resembling(other, cosine or 0.0, True, words, True, related.kind, related.factor)


def _form_of(adapter: Adapter) -> str:
    from loramerge.files.dtypes import DTYPES

    types = "/".join(DTYPES[name].word for name in adapter.dtypes())
    return f"{' + '.join(adapter.info.dialects) or 'unknown'} {types}"


def opened(path: str) -> Adapter:
    """Open an adapter that is to be compared.

    Raises:
        LoramergeError: if it cannot be read, or its content is broken.
    """
    from loramerge.adapter.load import load

    adapter = load(path)
    adapter.require_sound()
    return adapter


def _loosely(cosine: float) -> str:
    if cosine < -0.3:
        return "opposite"
    return "close" if cosine > 0.9 else "related" if cosine > 0.3 else "hardly related"
