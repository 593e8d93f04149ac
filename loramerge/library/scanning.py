"""Bring the index up to date with folders: only what is new or has changed is read.

Each few files are written to the index at once, so a scan that is killed goes on where it was. Several
scans may run at the same time: each begins elsewhere and passes over what another has done meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loramerge.algebra.workers import ordered
from loramerge.errors import FileError, LoramergeError, NotFound
from loramerge.events import Notify, Progress, ignore
from loramerge.library.contents import Digests, Read, digests, read, without_sketch
from loramerge.library.index import Index, Location
from loramerge.library.paths import walk
from loramerge.library.sidecars import Listing, listing, sidecar_facts, sidecars_of
from loramerge.library.sketches import Sketches
from loramerge.records import record

__all__ = ["ScanResult", "scan", "scan_file"]

_TOGETHER = 16  # files that are written to the index at once


@dataclass(repr=False)
class ScanResult:
    """The state of folders, and what has changed since the last scan.

    Args:
        files: in the folders now.
        new, changed, moved: paths. What moved lay elsewhere before, with the same content.
        missing: paths of files that are gone.
        unreadable: path → why it cannot be read; all that are in the folders.
        sidecar_problems: path → what is wrong with its sidecars; all that are in the folders.
        not_compared: path → why it has no sketch, so that neither `similar` nor `duplicates` finds
            it; all that are in the folders, checkpoints aside.
    """

    folders: list[str]
    files: int = 0
    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    sidecar_problems: dict[str, list[str]] = field(default_factory=dict)
    not_compared: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        sorts = ("new", "changed", "moved", "missing")
        changes = (f"{len(getattr(self, name))} {name}" for name in sorts)
        return f"<ScanResult {self.files} files: {', '.join(changes)}>"

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return dict(vars(self))


@record
class _FileNow:
    """A file in a folder, as it is now."""

    path: str
    root: str
    state: str
    beside: str
    names: Listing


@record(eq=False)
class _Done:
    """A file that was read: its digests and what it holds, which is None if it is known already.

    Args:
        reason: why it cannot be read.
    """

    found: _FileNow
    digests: Digests | None = None
    read: Read | None = None
    reason: LoramergeError | None = None

    @property
    def error(self) -> str | None:
        """The reason in words."""
        return None if self.reason is None else self.reason.problem


def scan(
    index: Index,
    folders: Sequence[Path],
    *,
    fresh: bool = False,
    threads: int | None = None,
    notify: Notify = ignore,
) -> ScanResult:
    """Bring the index up to date with folders and everything below them.

    Args:
        fresh: read every file again.

    Raises:
        NotFound: if one is not a folder.
        FileError: if the index cannot be written.
    """
    roots = [folder.resolve() for folder in folders]
    for root in roots:
        if not root.is_dir() and not index.places("root = ?", str(root)):
            raise NotFound("no such folder", file=root)
    result = ScanResult([str(root) for root in roots])
    every: dict[str, _FileNow] = {}
    for root in roots:
        every |= {one.path: one for one in _walk(root, result)}
    known = {place.path: place for root in roots for place in _below(index, root)}
    contents = dict(index.rows("SELECT id, sketched FROM contents"))
    room = Sketches(index.folder).count  # less than it was where the file of sketches is gone
    lost = {number for number, sketched in contents.items() if sketched and number >= room}
    lost |= {place.content for place in known.values() if place.content not in contents} - {None}
    todo = []
    for one in every.values():
        place = known.get(one.path)
        same = place is not None and place.state == one.state and place.content not in lost
        if place is None or not same or fresh:
            todo.append(one)
        elif place.beside != one.beside or place.missing:
            with index.writing():
                index.put_place(_placed(one, place.content, place.error))
    _read_all(index, todo, known, result, fresh or bool(lost), threads, notify)
    gone = [p.path for p in known.values() if p.path not in every and not os.path.lexists(p.path)]
    with index.writing():
        index.mark_missing(gone)
    result.files = len(every)
    result.missing = sorted(set(gone))
    _tell(index, every, result)
    return result


def scan_file(index: Index, path: Path) -> Location:
    """Bring the index up to date with one file, and return its place.

    Raises:
        LoramergeError: if it cannot be read.
    """
    place = path.absolute()
    try:
        str(place).encode("utf-8")
    except UnicodeEncodeError:
        raise FileError("the index cannot keep a name that is not UTF-8", file=path,
                        hint="rename the file") from None  # fmt: skip
    known = index.places("path = ?", str(place)) or index.places("path = ?", str(place.resolve()))
    if known:
        place = Path(known[0].path)
    root = known[0].root if known else str(place.parent)
    one = _seen(place, root, listing(place.parent))
    content = known[0].content if known else None
    if content is None or known[0].state != one.state or index.facts(content) is None:
        done = _read(one, {})
        if done.reason is not None:
            raise done.reason
        _write(index, [done], {}, ScanResult([]))
    return index.places("path = ?", str(place))[0]


# --- what is there


def _walk(root: Path, result: ScanResult) -> Iterator[_FileNow]:
    folder, names = "", listing("")

    def shut(error: OSError) -> None:
        shown = os.fsencode(error.filename).decode("utf-8", "replace")
        result.unreadable[shown] = f"the folder cannot be read: {error.strerror}"

    for _, path in walk(str(root), "adapters", tell=shut):
        try:
            str(path).encode("utf-8")
            parent = str(path.parent)
            if parent != folder:
                folder, names = parent, listing(parent)
            yield _seen(path, str(root), names)
        except UnicodeEncodeError:
            shown = os.fsencode(path).decode("utf-8", "replace")
            result.unreadable[shown] = "its name is not UTF-8"
        except OSError:
            continue  # gone since it was listed


def _seen(path: Path, root: str, names: Listing) -> _FileNow:
    beside = sidecars_of(path, names)
    return _FileNow(str(path), root, _state(_files(path)), _state(beside, names=True), names)


def _files(path: Path) -> list[Path]:
    """Return a file, or all files in the folder of an adapter."""
    return sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]


def _state(paths: Sequence[Path], *, names: bool = False) -> str:
    """Return a text that changes when one of some files does."""
    parts = []
    for path in paths:
        status = path.stat()
        name = f"{path.name}:" if names else ""
        parts.append(f"{name}{status.st_size}:{status.st_mtime_ns}:{status.st_ino}")
    return " ".join(parts)


def _below(index: Index, root: Path) -> list[Location]:
    """Return the places in a folder, whichever folder was scanned when they were found."""
    start = str(root / "x")[:-1]
    return index.places("root = ? OR substr(path, 1, ?) = ?", str(root), len(start), start)


# --- reading


def _read_all(
    index: Index,
    todo: list[_FileNow],
    known: dict[str, Location],
    result: ScanResult,
    fresh: bool,
    threads: int | None,
    notify: Notify,
) -> None:
    start = os.getpid() * 7919 % max(1, len(todo))  # not where other processes begin
    todo = [*todo[start:], *todo[:start]]
    contents = {} if fresh else dict(index.rows("SELECT sha256, id FROM contents"))
    for first in range(0, len(todo), _TOGETHER):
        chunk = todo[first : first + _TOGETHER]
        if not fresh:
            chunk = [one for one in chunk if not _is_done(index, one, result, known)]
        done = list(ordered(lambda one: _read(one, contents), chunk, threads=threads))
        _write(index, done, known, result)
        notify(Progress("indexing", min(first + _TOGETHER, len(todo)), len(todo), "files"))


def _is_done(index: Index, one: _FileNow, result: ScanResult, known: dict[str, Location]) -> bool:
    """Return whether a file is known already: to another process, or where it lay before."""
    for place in index.places("path = ?", one.path):
        if place.state == one.state and not place.missing and place != known.get(one.path):
            return True
    if one.state.endswith(":0"):
        return False  # a disk without inodes
    for place in index.places("state = ? AND content NOT NULL", one.state):
        if place.path != one.path and not os.path.lexists(place.path):
            with index.writing():
                index.put_place(_placed(one, place.content, None))
                index.mark_missing([place.path])
            result.moved.append(one.path)
            return True
    return False


def _read(one: _FileNow, contents: dict[str, int]) -> _Done:
    path = Path(one.path)
    try:
        found = digests(path)
        content = None if found.sha256 in contents else read(path, found)
        if _state(_files(path)) != one.state:
            return _Done(one, reason=FileError("it changed while it was read", file=path))
        return _Done(one, found, content)
    except LoramergeError as error:
        return _Done(one, reason=error)
    except OSError as error:
        words = f"it cannot be read: {error.strerror or error}"
        return _Done(one, reason=FileError(words, file=path))


def _write(
    index: Index, done: Sequence[_Done], known: dict[str, Location], result: ScanResult
) -> None:
    """Write what was read: sketches first, so that the index names none that is not there."""
    if not done:
        return
    with index.writing():
        rows = {}
        for one in done:
            content = None
            if one.digests is not None:
                content = index.content_with(one.digests.sha256)
            if one.digests is not None and one.read is not None:
                content = index.put_content(
                    one.digests.sha256,
                    one.digests.identity,
                    one.read.facts,
                    sketched=one.read.sketch is not None,
                )
                if one.read.sketch is not None:
                    rows[content] = one.read.sketch
            _count(index, one, content, known, result)
            index.put_place(_placed(one.found, content, one.error))
        if rows:
            Sketches(index.folder).write(rows)


def _count(
    index: Index, one: _Done, content: int | None, known: dict[str, Location], result: ScanResult
) -> None:
    path = one.found.path
    before = known.get(path)
    if before is not None:
        if before.content != content:
            result.changed.append(path)
        return
    old = [] if content is None else index.places("content = ?", content)
    was_there = [place for place in old if place.path != path]
    if was_there and not any(os.path.lexists(place.path) for place in was_there):
        index.mark_missing(place.path for place in was_there)
        result.moved.append(path)
    else:
        result.new.append(path)


def _placed(one: _FileNow, content: int | None, error: str | None) -> Location:
    facts = sidecar_facts(Path(one.path), one.names)
    return Location(one.path, one.root, one.state, content, error, one.beside, facts.json())


def _tell(index: Index, every: dict[str, _FileNow], result: ScanResult) -> None:
    """Add what is wrong with files and sidecars in the folders, whenever it was found."""
    reasons = without_sketch(index)
    for root in result.folders:
        for place in _below(index, Path(root)):
            if place.path not in every:
                continue
            if place.content in reasons:
                result.not_compared[place.path] = reasons[place.content]
            if place.error:
                result.unreadable[place.path] = place.error
            if place.sidecars.get("problems"):
                result.sidecar_problems[place.path] = list(place.sidecars["problems"])
    for paths in (result.new, result.changed, result.moved):
        paths.sort()
