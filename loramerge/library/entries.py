"""Entries of the index: all that is known of one adapter, found by words, names and digests."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from loramerge.errors import NotFound, UsageError, listed
from loramerge.library.index import Index, Location, Own, has_index, open_index, relative
from loramerge.library.searching import query_of

__all__ = [
    "Entry",
    "entries",
    "entry",
    "indexed_paths",
    "matching",
    "named",
    "require_one",
    "search",
    "with_digest",
]

# how much a word counts, by where it stands: name, triggers, own, tags, family, comments
_WEIGHTS = "10.0, 8.0, 8.0, 3.0, 3.0, 1.0"
_DIGITS = re.compile(r"[0-9a-fA-F]{8,64}")


@dataclass(frozen=True, repr=False)
class Entry:
    """One content of the index.

    Args:
        places: where it is, or, if it is nowhere any more, where it was.
        missing: whether it is nowhere any more.
        facts: what the file says, see `contents.read`.
        own: one's own words.
    """

    content: int
    places: tuple[Location, ...]
    missing: bool
    facts: Mapping[str, Any]
    own: Own

    def __repr__(self) -> str:
        family = f", {self.facts['family']}" if self.facts.get("family") else ""
        rank = f", rank {self.rank}" if self.rank else ""
        return f"<Entry {self.name}{family}{rank}{', missing' if self.missing else ''}>"

    @property
    def path(self) -> Path:
        """The first of its places."""
        return Path(self.places[0].path)

    @property
    def name(self) -> str:
        """The path of its first place from the scanned folder on."""
        return relative(self.places[0].path, self.places[0].root)

    @property
    def rank(self) -> str:
        """Its rank, or the least and the greatest; empty without any."""
        ranks = sorted(int(rank) for rank in self.facts.get("ranks", ()))
        if len(ranks) < 2:
            return "".join(map(str, ranks))
        return f"{ranks[0]}–{ranks[-1]}"

    @cached_property
    def trigger_words(self) -> list[str]:
        """The trigger words that the file or a sidecar states, each once."""
        return self._united("trigger_words", self.facts.get("trigger_words", ()))

    @cached_property
    def tags(self) -> list[str]:
        """One's own tags, then those of sidecars."""
        return self._united("tags", self.own.tags)

    def _united(self, key: str, first: Iterable[str]) -> list[str]:
        beside = (word for place in self.places for word in place.sidecars.get(key, ()))
        return list(dict.fromkeys((*first, *beside)))

    def beside(self, key: str) -> Any:
        """Return what a sidecar says, of the first place that has one which does."""
        return next(filter(None, (place.sidecars.get(key) for place in self.places)), None)

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {
            "path": self.places[0].path,
            "paths": [place.path for place in self.places],
            "missing": self.missing,
            "own": self.own.json(),
            "trigger_words": self.trigger_words,
            "tags": self.tags,
            "file": dict(self.facts),
            "sidecars": {place.path: dict(place.sidecars) for place in self.places},
        }


def entry(index: Index, content: int) -> Entry | None:
    """Return what the index says of a content, None if it has no place, or is not known any more."""
    places = index.places("content = ?", content)
    facts = index.facts(content)
    if not places or facts is None:
        return None
    here = tuple(place for place in places if not place.missing)
    return Entry(content, here or tuple(places), not here, facts, index.own(facts["identity"]))


def entries(index: Index, contents: Iterable[int]) -> list[Entry]:
    """Return what the index says of contents, in their order."""
    return [one for one in (entry(index, content) for content in contents) if one is not None]


def search(
    index: Index,
    words: Sequence[str] = (),
    *,
    family: str | None = None,
    tags: Sequence[str] = (),
    rating: int | None = None,
    missing: bool = False,
) -> list[Entry]:
    """Return the entries that have all of some words, the best first; all of them without words.

    Args:
        words: of names, trigger words, tags, families, comments and one's own words; or the first 8
            digits or more of a digest.
        family: of the model, or the beginning of its name.
        tags: one's own, or those of sidecars; all have to be there.
        rating: the least.
        missing: only those that are nowhere any more, which are left out otherwise.
    """
    found = entries(index, matching(index, words))
    wanted = {tag.casefold() for tag in tags}

    def fits(one: Entry) -> bool:
        return (
            one.missing == missing
            and str(one.facts.get("family") or "").startswith(family or "")
            and wanted <= {tag.casefold() for tag in one.tags}
            and (one.own.rating or 0) >= (rating or 0)
        )

    return [one for one in found if fits(one)]


def matching(index: Index, words: Sequence[str]) -> list[int]:
    """Return the contents that have all of some words, the best first; all with a place without words.

    Raises:
        UsageError: if nothing in the words is one.
    """
    if len(words) == 1 and _DIGITS.fullmatch(words[0]):
        like = f"{words[0].lower()}%"
        rows = index.rows(
            "SELECT id FROM contents WHERE sha256 LIKE ? OR identity LIKE ?", like, like
        )
        if rows:
            return [row[0] for row in rows]
    if not words:
        rows = index.rows(
            "SELECT content, min(path) AS first FROM places WHERE content NOT NULL "
            "GROUP BY content ORDER BY first"
        )
        return [row[0] for row in rows]
    query = query_of(words)
    if not query:
        raise UsageError("nothing in this text is a word", found=" ".join(words))
    rows = index.rows(
        f"SELECT rowid FROM words WHERE words MATCH ? ORDER BY bm25(words, {_WEIGHTS}), rowid",
        query,
    )
    return [row[0] for row in rows]


# --- names


def named(index: Index, matches: Callable[[str], bool]) -> dict[int, list[Location]]:
    """Return the places whose path in their folder matches, by content.

    Files that are gone count too: their content may lie elsewhere now.
    """
    found: dict[int, list[Location]] = {}
    for path, root in index.rows("SELECT path, root FROM places WHERE content NOT NULL"):
        if matches(relative(str(path), str(root))):
            for place in index.places("path = ?", path):
                if place.content is not None:
                    found.setdefault(place.content, []).append(place)
    return found


def indexed_paths(matches: Callable[[str], bool]) -> list[Path]:
    """Return the files that the index knows by a name, or knew before they were moved.

    One for each content. Where some have the name now, only they count. Empty without an index.
    """
    if not has_index():
        return []
    with open_index(create=False) as index:
        found = named(index, matches)
        now = [[p for p in places if os.path.exists(p.path)] for places in found.values()]
        if not any(now):
            moved = (index.places("content = ?", content) for content in found)
            now = [[p for p in places if os.path.exists(p.path)] for places in moved]
    return sorted(Path(places[0].path) for places in now if places)


def with_digest(sha256: str) -> list[Path]:
    """Return the files of the index that had a digest when they were last read, and are there."""
    if not has_index():
        return []
    with open_index(create=False) as index:
        number = index.content_with(sha256)
        places = [] if number is None else index.places("content = ?", number)
    return [Path(place.path) for place in places if os.path.exists(place.path)]


def require_one(index: Index, name: str, matches: Callable[[str], bool]) -> int:
    """Return the content of a name, of a file that is gone, too.

    Raises:
        NotFound: if there is none. UsageError: if there are several.
    """
    found = named(index, matches)
    if not found:
        raise NotFound(f"the index of the library has no {name!r}",
                       hint="loramerge library search WORDS")  # fmt: skip
    if len(found) > 1:
        paths = sorted(place.path for places in found.values() for place in places)
        raise UsageError(
            f"the name {name!r} matches several files",
            found=listed(paths),
            hint="give more of the path",
        )
    return next(iter(found))
