"""All contents of the index at a glance: what sorting and filtering need, one small row for each.

`entries` reads all that is known of a content; with thousands of them that takes seconds, and a list
shows a few dozen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from loramerge.library.index import Index, index_folder, relative
from loramerge.library.registry import NoHome
from loramerge.library.stored import facts_in, rating_in
from loramerge.records import record

__all__ = ["Glance", "index_state", "overview"]

_FACTS = ("what", "family", "size", "kinds", "ranks", "problems", "not_sketched")
_SETTLED = 100_000_000  # nanoseconds after which a further change shows in a file's time


@record
class Glance:
    """One content of the index, or one file in it that cannot be read.

    Args:
        content: its number; None for a file that cannot be read.
        path: of the first of its places that is there.
        name: that path from the scanned folder on.
        what, family, kinds: see `contents.read`.
        rank: the greatest, 0 without any.
        size: bytes, 0 if not known.
        modified: of the file, nanoseconds since 1970, 0 if not known.
        rating: one's own, 0 without one.
        problems: how many are known.
        missing: whether it is nowhere any more.
        places: at how many paths it lies.
    """

    content: int | None
    path: str
    name: str
    what: str | None = None
    family: str | None = None
    kinds: tuple[str, ...] = ()
    rank: int = 0
    size: int = 0
    modified: int = 0
    rating: int = 0
    problems: int = 0
    missing: bool = False
    places: int = 1


def index_state() -> Any:
    """Return what changes when any process writes to the index; None if there is none.

    Two changes within a moment may leave the same times, so that the state of a fresh change equals no
    other, not even itself a moment later.
    """
    try:
        database = index_folder() / "index.sqlite"
    except NoHome:
        return None
    found = [_file_state(path) for path in (database, Path(f"{database}-wal"))]
    if found[0] is None:
        return None
    newest = max(state[1] for state in found if state is not None)
    if time.time_ns() - newest < _SETTLED:
        return object()
    return (str(database), *found)


def _file_state(path: Path) -> tuple[int, int] | None:
    """Return size and time of a file; None if it is not there, or empty as a reader leaves one."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if status.st_size else None


def overview(index: Index) -> list[Glance]:
    """Return all contents of the index and the files that cannot be read, by path."""
    facts = _facts(index)
    ratings = dict(index.rows("SELECT identity, rating FROM own WHERE rating NOT NULL"))
    places: dict[Any, list[tuple[Any, ...]]] = {}
    for row in index.rows(
        "SELECT content, path, root, state, missing, error, CASE WHEN json_valid(sidecars) THEN "
        "json_array_length(sidecars, '$.problems') END FROM places "
        "WHERE typeof(path) = 'text' AND typeof(root) = 'text' ORDER BY path"
    ):
        key = row[1] if row[0] is None else row[0]
        places.setdefault(key, []).append(row)
    found = []
    for rows in places.values():
        number = rows[0][0]
        if number is None or number in facts:
            identity, known = ("", {}) if number is None else facts[number]
            found.append(_glance(number, rows, known, ratings.get(identity)))
    return found


def _facts(index: Index) -> dict[int, tuple[str, dict[str, Any]]]:
    """Return content → identity and the facts that a glance has."""
    picked = ", ".join(f"'{name}', json_extract(facts, '$.{name}')" for name in _FACTS)
    rows = index.rows(
        f"SELECT id, identity, CASE WHEN json_valid(facts) THEN json_object({picked}) END FROM contents"
    )
    return {number: (identity, facts_in(text)) for number, identity, text in rows}


def _glance(
    content: int | None, rows: Sequence[tuple[Any, ...]], facts: dict[str, Any], rating: Any
) -> Glance:
    here = [row for row in rows if not row[4]]
    _, path, root, state, _, error, _ = (here or rows)[0]
    beside = sum(row[6] for row in rows if isinstance(row[6], int))
    own = len(facts.get("problems", ())) + bool(error) + bool(facts.get("not_sketched"))
    return Glance(
        content=content,
        path=path,
        name=relative(path, root),
        what=facts.get("what"),
        family=facts.get("family"),
        kinds=tuple(facts.get("kinds", ())),
        rank=max(map(int, facts.get("ranks", ())), default=0),
        size=facts.get("size", 0),
        modified=max(_times(state), default=0),
        rating=rating_in(rating) or 0,
        problems=own + beside,
        missing=not here,
        places=len(here or rows),
    )


def _times(state: Any) -> Iterator[int]:
    """Yield the times in the state of a place: `size:time:inode`, several of a folder."""
    for one in str(state).split():
        parts = one.split(":")
        if len(parts) > 1 and parts[-2].isdecimal():
            yield int(parts[-2])
