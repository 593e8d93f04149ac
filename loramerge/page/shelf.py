"""The adapters that the page shows: those of the index, and files beside it that lie in its folders.

What sorting and filtering need is kept in memory, and read again when the index changes. A newcomer has
no index, and sees the files of the library's folders and the current folder by their names.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loramerge.errors import NotFound, UsageError
from loramerge.library.entries import matching
from loramerge.library.index import has_index, open_index
from loramerge.library.overview import Glance, index_state, overview
from loramerge.library.paths import walk
from loramerge.library.registry import load_registry
from loramerge.library.shipped import SHIPPED_ADAPTERS, shipped
from loramerge.page.places import Places

__all__ = ["HIDDEN", "Query", "Selection", "Shelf", "number_of"]

HIDDEN = ("checkpoint", "unknown")  # what is shown only where it is asked for
_FOLDERS = 1000  # that are looked into below one of the page's folders
_OLD = 5.0  # seconds after which folders are looked through again
_OF_A_RUN = re.compile(r"(?:^|/)[^/]*-run/cache/")  # what training keeps beside its adapter
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Query:
    """A request for cards.

    Args:
        words: all have to be there; see `entries.search`.
        kind: of networks, or what a file is; empty is all adapters and embeddings.
        sort: see `_SORTS`; empty is by name, or the best first where there are words.
        descending: None is the usual direction.
        copies: content → number of its group; only these are shown, the copies of one thing together.
    """

    words: str = ""
    family: str = ""
    kind: str = ""
    sort: str = ""
    descending: bool | None = None
    copies: Mapping[int, int] | None = None


@dataclass(frozen=True)
class Selection:
    """The files that a query found.

    Args:
        families, kinds: with their counts, of all that could be shown.
    """

    all: Sequence[Glance]
    families: Mapping[str, int]
    kinds: Mapping[str, int]


_SORTS: Mapping[str, Callable[[Glance], int]] = {
    "size": lambda one: one.size,
    "rank": lambda one: one.rank,
    "rating": lambda one: one.rating,
    "newest": lambda one: one.modified,
    "problems": lambda one: one.problems,
}


def number_of(one: Glance) -> str:
    """Return the number of a card: that of the content, or one made of the path."""
    if one.content is not None:
        return str(one.content)
    return "f" + hashlib.sha256(os.fsencode(one.path)).hexdigest()[:20]


class Shelf:
    """The adapters that the page knows.

    Args:
        places: where it looks.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._lock = threading.Lock()
        self._state: Any = ""  # of the index when it was read last
        self._indexed: list[Glance] = []
        self._paths: frozenset[str] = frozenset()
        self._loose: list[Glance] = []  # files that are not in the index
        self._looked = 0.0
        self._facts: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}
        self._every: list[Glance] = []
        self._numbers: dict[str, Glance] = {}
        self._copies: tuple[Any, Mapping[int, int]] | None = None

    def find(self, query: Query) -> Selection:
        """Return what a query finds, in order.

        Raises:
            UsageError: if it cannot be sorted so.
        """
        if query.sort not in ("", "name", *_SORTS):
            raise UsageError(
                f"cannot sort by {query.sort!r}", expected=f"name, {', '.join(_SORTS)}"
            )
        self._renew()
        shown = [one for one in self._every if not one.missing]
        kinds = Counter(kind for one in shown for kind in _kinds(one))
        shown = [one for one in shown if _is_of(one, query.kind)]
        families = Counter(one.family for one in shown if one.family)
        if query.family:
            shown = [one for one in shown if (one.family or "") == query.family]
        if query.words.strip():
            shown = self._with_words(shown, query)
        if query.copies is not None:
            copies = query.copies
            shown = [one for one in shown if one.content in copies]
            shown.sort(key=lambda one: copies[one.content or 0])
        return Selection(_in_order(shown, query), families, kinds)

    def get(self, number: str) -> Glance:
        """Return what a card shows.

        Raises:
            NotFound: if there is none of this number.
        """
        self._renew()
        if number not in self._numbers:
            raise NotFound(
                "the library has no such file", hint="it may have been moved; look again"
            )
        return self._numbers[number]

    @property
    def has_index(self) -> bool:
        """True if anything was indexed."""
        return has_index()

    def is_indexed(self, one: Glance) -> bool:
        """Return whether the index has a file."""
        return one.content is not None or one.path in self._paths

    def _with_words(self, shown: list[Glance], query: Query) -> list[Glance]:
        order: dict[int, int] = {}
        words = query.words.split()
        if has_index():
            try:
                with open_index(create=False) as index:
                    order = {number: n for n, number in enumerate(matching(index, words))}
            except UsageError:  # nothing in the text is a word yet
                return []
        texts = [word.casefold() for word in words]

        def fits(one: Glance) -> bool:
            if one.content is not None:
                return one.content in order
            own = f"{one.name} {one.family or ''} {self._said_of(one)}".casefold()
            return all(text in own for text in texts)

        found = [one for one in shown if fits(one)]
        if not query.sort:
            found.sort(key=lambda one: order.get(one.content or 0, -1))
        return found

    def _said_of(self, one: Glance) -> str:
        return " ".join(self.facts(one).get("trigger_words", ()))

    # --- keeping up

    def _renew(self) -> None:
        with self._lock:
            state = index_state()
            if state != self._state or not self._looked:
                self._state = state
                self._read_index()
                if not self._looked:
                    self._loose = list(self._walked())
                    self._looked = time.monotonic()
                self._arrange()

    def _read_index(self) -> None:
        self._indexed, self._paths = [], frozenset()
        if self._state is not None:
            with open_index(create=False) as index:
                self._indexed = overview(index)
                self._paths = frozenset(path for (path,) in index.rows("SELECT path FROM places"))

    def look_again(self) -> bool:
        """Look through the folders if that was a while ago; return whether anything is new or gone."""
        if time.monotonic() - self._looked < _OLD:
            return False
        self._looked = time.monotonic()
        found = list(self._walked())
        with self._lock:
            changed, self._loose = found != self._loose, found
            self._arrange()
        return changed

    def look_soon(self) -> None:
        """Look through the folders at the next occasion, because something was written."""
        if self._looked:  # else the first question looks anyway
            self._looked = min(self._looked, time.monotonic() - _OLD) or -1.0

    def _arrange(self) -> None:
        """Put everything in the order of names, with what is known of files beside the index."""
        loose = [self._known(one) for one in self._loose if one.path not in self._paths]
        every = sorted((*self._indexed, *loose), key=lambda one: _natural(one.name))
        self._every = every
        self._numbers = {number_of(one): one for one in every}

    def _walked(self) -> Iterator[Glance]:
        """Yield the files of adapters in the page's folders, and those that come with loramerge."""
        for name in SHIPPED_ADAPTERS:
            yield from _seen(shipped(name), name)
        folders = [Path(one.path) for one in load_registry().folders if one.holds != "bases"]
        folders += [place for place in self._places.opened if place.is_dir()]
        done: set[str] = set()  # beside those of the index, which were looked through before
        inside = [os.fspath(root) for root in self._places.roots()]
        for folder in (*folders, self._places.folder):
            root = os.path.realpath(folder)
            for name, path in walk(root, "adapters", folders_at_most=_FOLDERS):
                text = os.fspath(path)
                if text in self._paths or text in done or _OF_A_RUN.search(name):
                    continue
                if _lies_in(os.path.realpath(path), inside):
                    done.add(text)
                    yield from _seen(path, name)

    # --- files beside the index

    def facts(self, one: Glance) -> dict[str, Any]:
        """Return what is known of a file that is not in the index; nothing before it was described."""
        state, facts = self._facts.get(one.path, (None, {}))
        return facts if state == (one.size, one.modified) else {}

    def undescribed(self, several: Sequence[Glance]) -> list[Glance]:
        """Return those that are not in the index and were not described yet."""
        return [one for one in several if not self.is_indexed(one) and not self.facts(one)]

    def learn(self, one: Glance, facts: dict[str, Any]) -> None:
        """Keep what the header of a file says."""
        with self._lock:
            self._facts[one.path] = ((one.size, one.modified), facts)
            while len(self._facts) > _DESCRIBED:
                del self._facts[next(iter(self._facts))]
            self._arrange()

    def _known(self, one: Glance) -> Glance:
        facts = self.facts(one)
        return replace(
            one,
            what=facts.get("what"),
            family=facts.get("family"),
            kinds=tuple(facts.get("kinds") or ()),
            rank=max(map(int, facts.get("ranks") or ()), default=0),
            problems=len(facts.get("problems") or ()),
        )

    # --- copies

    def copies(self) -> Mapping[int, int] | None:
        """Return content → group of the copies in the index as it is now; None if not known yet."""
        self._renew()
        known = self._copies
        return known[1] if known is not None and known[0] == self._state else None

    def learn_copies(self, groups: Sequence[Sequence[int]]) -> Mapping[int, int]:
        """Keep groups of copies, and return content → number of its group."""
        found = {content: n for n, group in enumerate(groups) for content in group}
        self._copies = (self._state, found)
        return found


_DESCRIBED = 5000  # files beside the index of which facts are kept


def _kinds(one: Glance) -> tuple[str, ...]:
    return (*one.kinds, *((one.what,) if one.what not in (None, "adapter") else ()))


def _is_of(one: Glance, kind: str) -> bool:
    return kind in _kinds(one) if kind else one.what not in HIDDEN


def _in_order(shown: list[Glance], query: Query) -> list[Glance]:
    """Sort what is sorted by name, or by how well it fits."""
    if query.sort in _SORTS:
        descending = query.descending is not False
        return sorted(shown, key=_SORTS[query.sort], reverse=descending)
    return shown[::-1] if query.descending else shown


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts `style2` before `style10`, and does not mind capitals."""
    parts = _DIGITS.split(name.casefold())
    return [(int(one), "") if n % 2 else (-1, one) for n, one in enumerate(parts)]


def _seen(path: Path, name: str) -> Iterator[Glance]:
    try:
        os.fspath(path).encode("utf-8")
        status = path.stat()
    except (OSError, UnicodeEncodeError):  # gone since it was listed, or no page could name it
        return
    size = 0 if path.is_dir() else status.st_size
    yield Glance(None, os.fspath(path), name, size=size, modified=status.st_mtime_ns)


def _lies_in(path: str, roots: Sequence[str]) -> bool:
    return any(path == root or path.startswith(os.path.join(root, "")) for root in roots)
