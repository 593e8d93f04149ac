"""The index of the library: one SQLite database with the facts about files and a person's own words.

A *content* is what a file holds, known by its sha256; a *place* is a path at which it was found. One's
own tags, notes and ratings belong to the tensors (of a safetensors file the sha256 of its bytes after
the header), so they stay when a file moves, is copied, or gets other metadata.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import field
from pathlib import Path
from typing import Any

from loramerge.errors import FileError
from loramerge.files.lock import locked
from loramerge.library.registry import NoHome, home
from loramerge.library.searching import searchable
from loramerge.library.stored import facts_in, rating_in, sidecars_in, tags_in, text_in
from loramerge.records import record

__all__ = ["Index", "Location", "Own", "has_index", "index_folder", "open_index", "relative"]

_DATABASE = "index.sqlite"
_VERSION = 1  # of tables and sketches; an index of another one is made anew, and `own` is kept
_PATIENCE = 120.0  # seconds to wait for other processes
_OWN = """
CREATE TABLE IF NOT EXISTS own (
    identity TEXT PRIMARY KEY, tags TEXT NOT NULL DEFAULT '[]', note TEXT, rating INTEGER);
"""
_TABLES = """
CREATE TABLE contents (
    id INTEGER PRIMARY KEY AUTOINCREMENT, sha256 TEXT NOT NULL UNIQUE, identity TEXT NOT NULL,
    sketched INTEGER NOT NULL, facts TEXT NOT NULL);
CREATE INDEX contents_identity ON contents (identity);
CREATE TABLE places (
    path TEXT PRIMARY KEY, root TEXT NOT NULL, state TEXT NOT NULL, content INTEGER,
    error TEXT, beside TEXT NOT NULL, sidecars TEXT NOT NULL, missing INTEGER NOT NULL);
CREATE INDEX places_content ON places (content);
CREATE INDEX places_state ON places (state);
CREATE VIRTUAL TABLE words USING fts5 (
    name, triggers, own, tags, family, comments, tokenize = "unicode61 remove_diacritics 2");
"""


@record
class Own:
    """One's own words on an adapter.

    Args:
        rating: 1 to 5.
    """

    tags: tuple[str, ...] = ()
    note: str | None = None
    rating: int | None = None

    def json(self) -> dict[str, Any]:
        """Return them as `--json` shows them."""
        return {"tags": list(self.tags), "note": self.note, "rating": self.rating}


@record
class Location:
    """A path at which a file was found.

    Args:
        root: folder that was scanned.
        state: size, time and inode, by which a change is noticed.
        content: its number; None for a file that cannot be read.
        error: why it cannot be read.
        beside: `state` of its sidecars.
        sidecars: see `sidecars.SidecarFacts.json`.
        missing: whether the file was gone when it was last looked for.
    """

    path: str
    root: str
    state: str
    content: int | None
    error: str | None = None
    beside: str = ""
    sidecars: Mapping[str, Any] = field(default_factory=dict)
    missing: bool = False


def relative(path: str, root: str) -> str:
    """Return a path from a scanned folder on, with slashes; the whole path if it is not below it."""
    try:
        found = os.path.relpath(path, root)
    except ValueError:  # on another drive, or empty
        return path
    return path if found.startswith(os.pardir) else found.replace(os.sep, "/")


def index_folder() -> Path:
    """Return the folder of the index and its sketches."""
    return home() / "library"


def has_index() -> bool:
    """Return whether anything was indexed."""
    try:
        return (index_folder() / _DATABASE).is_file()
    except NoHome:
        return False


@contextmanager
def open_index(*, create: bool = True) -> Iterator[Index]:
    """Open the index of the library, and close it in the end.

    Args:
        create: false raises an error if there is none.

    Raises:
        FileError: if it cannot be opened, or is not made yet.
    """
    path = index_folder() / _DATABASE
    if not create and not path.is_file():
        raise FileError(
            "the library has no index yet", hint="loramerge library scan FOLDER makes one"
        )
    connection = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = _connected(path)
        if _version(connection) != _VERSION:
            with locked(path):
                _prepare(connection, path)
        with suppress(sqlite3.OperationalError):  # where the disk has none, the usual journal does
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        yield Index(connection, path.parent)
    except (sqlite3.Error, OSError) as error:
        raise FileError(
            f"the index of the library cannot be used: {error}",
            file=path,
            hint="run again; if it stays so, move the file away: library scan makes a new one"
            if _may_write(path)
            else "this folder cannot be written; set LORAMERGE_HOME to another one",
        ) from None
    finally:
        if connection is not None:
            connection.close()


def _may_write(path: Path) -> bool:
    """Return whether files can be made beside a path, or where its folder would be."""
    folder = next((one for one in path.parents if one.exists()), path.parent)
    return os.access(folder, os.W_OK)


def _connected(path: Path) -> sqlite3.Connection:
    """Return a connection; where nothing can be written, one that reads without the files of WAL.

    What another process has not written back yet lies in those files: then SQLite decides.
    """
    waiting = path.with_name(f"{path.name}-wal").exists()
    if waiting or not path.is_file() or _may_write(path):
        return sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
    address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    return sqlite3.connect(address, timeout=_PATIENCE, isolation_level=None, uri=True)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables, of an index of another version anew.

    Raises:
        FileError: if a newer loramerge has made it.
    """
    version = _version(connection)
    if version == _VERSION:
        return  # another process was first
    if version > _VERSION:
        raise FileError("a newer loramerge has made the index of the library", file=path,
                        hint="use that one, or set LORAMERGE_HOME to another folder")  # fmt: skip
    drop = "".join(f"DROP TABLE IF EXISTS {name};" for name in ("words", "places", "contents"))
    connection.executescript(
        f"BEGIN IMMEDIATE;{drop}{_OWN}{_TABLES}PRAGMA user_version = {_VERSION};COMMIT;"
    )


class Index:
    """The index. Several processes may use it at once.

    Args:
        folder: where it and its sketches lie.
    """

    def __init__(self, connection: sqlite3.Connection, folder: Path) -> None:
        self.folder = folder
        self._database = connection

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the right to write; all of the block is written, or nothing."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        return self._database.execute(query, values).fetchall()

    # --- places

    def places(self, where: str = "1", *values: Any) -> list[Location]:
        """Return the places for which a condition of SQL holds, by path."""
        rows = self.rows(
            "SELECT path, root, state, content, error, beside, sidecars, missing FROM places "
            f"WHERE ({where}) AND typeof(path) = 'text' AND typeof(root) = 'text' ORDER BY path",
            *values,
        )
        return [
            Location(
                path, root, state, content, error, beside, sidecars_in(sidecars), bool(missing)
            )
            for path, root, state, content, error, beside, sidecars, missing in rows
        ]

    def put_place(self, place: Location) -> None:
        """Write a place, and make the words of its content searchable."""
        before = self.rows("SELECT content FROM places WHERE path = ?", place.path)
        values = (place.path, place.root, place.state, place.content, place.error, place.beside,
                  json.dumps(dict(place.sidecars)), int(place.missing))  # fmt: skip
        self._database.execute(
            "INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values
        )
        for (content,) in {*before, (place.content,)}:
            self._refresh_words(content)

    def mark_missing(self, paths: Iterable[str]) -> None:
        """Remember that files are gone; what is known of them stays."""
        self._database.executemany(
            "UPDATE places SET missing = 1 WHERE path = ?", [(path,) for path in paths]
        )

    def forget(self, root: str) -> int:
        """Take the places of a scanned folder off the index; one's own words stay. Return how many."""
        contents = self.rows("SELECT DISTINCT content FROM places WHERE root = ?", root)
        count = self._database.execute("DELETE FROM places WHERE root = ?", (root,)).rowcount
        for (content,) in contents:
            self._refresh_words(content)
        return count

    # --- contents

    def content_with(self, sha256: str) -> int | None:
        """Return the number of a content, None if it is not known."""
        rows = self.rows("SELECT id FROM contents WHERE sha256 = ?", sha256)
        return rows[0][0] if rows else None

    def put_content(
        self, sha256: str, identity: str, facts: Mapping[str, Any], *, sketched: bool
    ) -> int:
        """Write a content, and return its number: the row of its sketch."""
        self._database.execute(
            "INSERT INTO contents (sha256, identity, sketched, facts) VALUES (?, ?, ?, ?) ON CONFLICT "
            "(sha256) DO UPDATE SET sketched = excluded.sketched, facts = excluded.facts",
            (sha256, identity, int(sketched), json.dumps(facts)),
        )
        number = self.content_with(sha256)
        assert number is not None
        return number

    def facts(self, content: int) -> dict[str, Any] | None:
        """Return the facts about a content, with its digests; None if the index has lost them."""
        rows = self.rows("SELECT facts, sha256, identity FROM contents WHERE id = ?", content)
        if not rows:
            return None
        return {**facts_in(rows[0][0]), "sha256": str(rows[0][1]), "identity": str(rows[0][2])}

    # --- one's own words

    def own(self, identity: str) -> Own:
        """Return one's own words on an adapter."""
        rows = self.rows("SELECT tags, note, rating FROM own WHERE identity = ?", identity)
        if not rows:
            return Own()
        return Own(tags_in(rows[0][0]), text_in(rows[0][1]), rating_in(rows[0][2]))

    def put_own(self, identity: str, own: Own) -> None:
        """Write one's own words on an adapter, and make them searchable."""
        note = own.note and own.note.encode("utf-8", "replace").decode("utf-8")
        self._database.execute(
            "INSERT OR REPLACE INTO own (identity, tags, note, rating) VALUES (?, ?, ?, ?)",
            (identity, json.dumps(list(own.tags)), note, own.rating),
        )
        for (content,) in self.rows("SELECT id FROM contents WHERE identity = ?", identity):
            self._refresh_words(content)

    # --- words

    def _refresh_words(self, content: int | None) -> None:
        if content is None:
            return
        self._database.execute("DELETE FROM words WHERE rowid = ?", (content,))
        places = self.places("content = ?", content)
        if not places:
            return
        facts = self.facts(content)
        if facts is None:
            return
        own = self.own(facts["identity"])
        beside = [place.sidecars for place in places]
        texts = {
            "name": [relative(place.path, place.root) for place in places]
            + [facts.get("title"), *(one.get("title") for one in beside)],
            "triggers": [*facts.get("trigger_words", ()), *_all(beside, "trigger_words")],
            "own": [*own.tags, own.note],
            "tags": [*(tag for tag, _ in facts.get("tags", ())), *_all(beside, "tags")],
            "family": [facts.get("family"), facts.get("trained_on"), facts.get("dialect")]
            + [one.get("base") for one in beside],
            "comments": [facts.get("comment")]
            + [one.get(key) for one in beside for key in ("notes", "description", "version")],
        }
        self._database.execute(
            f"INSERT INTO words (rowid, {', '.join(texts)}) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (content, *(searchable(filter(None, found)) for found in texts.values())),
        )


def _all(several: Iterable[Mapping[str, Any]], key: str) -> list[str]:
    return [word for one in several for word in one.get(key, ())]
