"""The index of the library as functions, which commands and Python call alike.

Each opens the index, does one thing, and closes it. Names are looked up as everywhere; a file that is
new or has changed is read first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from os import PathLike, fspath
from typing import TYPE_CHECKING

from loramerge.adapter import Adapter
from loramerge.adapter.formats.named import split_name
from loramerge.errors import NotFound, Setting, UsageError
from loramerge.events import Notify, ignore
from loramerge.library.entries import Entry, entry, require_one
from loramerge.library.entries import search as _search
from loramerge.library.index import Index, Own, open_index
from loramerge.library.lookup import find, is_called
from loramerge.library.registry import expanded, load_registry
from loramerge.library.scanning import ScanResult, scan_file
from loramerge.library.scanning import scan as _scan

if TYPE_CHECKING:
    from loramerge.library.copies import Duplicates
    from loramerge.library.resembling import Resembling

__all__ = ["duplicates", "note", "rate", "scan", "search", "show", "similar", "tag"]

Named = str | PathLike[str]
_STARS = 5


def scan(
    *folders: Named, fresh: bool = False, threads: int | None = None, notify: Notify = ignore
) -> ScanResult:
    """Bring the index up to date with folders; only new and changed files are read.

    Args:
        folders: with everything below them; none are those of the library that hold adapters.
        fresh: read all files again.

    Raises:
        UsageError: if no folder is given, and the library has none.
        NotFound: if one is not there.
    """
    wanted = [expanded(fspath(folder)) for folder in folders]
    if not wanted:
        known = load_registry().folders
        wanted = [expanded(folder.path) for folder in known if folder.holds != "bases"]
    if not wanted:
        raise UsageError(
            "the library has no folders of adapters",
            hint="loramerge library add FOLDER, or give a folder to index",
        )
    with open_index() as index:
        return _scan(index, wanted, fresh=fresh, threads=threads, notify=notify)


def search(
    *words: str,
    family: str | None = None,
    tags: str | tuple[str, ...] | list[str] = (),
    rating: int | None = None,
    missing: bool = False,
) -> list[Entry]:
    """Return the indexed adapters that have all words, the best first; all of them without words.

    Args:
        words: beginnings of words in names, trigger words, tags, families, comments, sidecars and one's
            own words; or the first 8 digits or more of a hash.
        family: of the model, or the beginning of its name.
        tags: all have to be there.
        rating: only those that you rated so or better, 1 to 5.
        missing: only files that are gone, which are left out otherwise.

    Raises:
        FileError: if nothing is indexed yet.
    """
    wanted = (tags,) if isinstance(tags, str) else tuple(tags)
    with open_index(create=False) as index:
        return _search(index, words, family=family, tags=wanted, rating=rating, missing=missing)


def show(name: Named) -> Entry:
    """Return all that is known of an adapter: its file, what lies beside it, and your own words.

    Args:
        name: a file, or a name in the library; of a file that is gone, too.

    Raises:
        NotFound: if there is none.
    """
    with open_index() as index:
        return _entry(index, fspath(name))


def similar(
    adapter: Named | Adapter, *, most: int = 10, notify: Notify = ignore
) -> list[Resembling]:
    """Return the indexed adapters that change a model most like one does, without its own file.

    Args:
        adapter: a path, a name, or an adapter in memory; it need not be indexed.
        most: how many.

    Raises:
        AdapterError: if its change cannot be compared, as without a base.
        FileError: if nothing is indexed yet.
    """
    from loramerge.adapter.load import load
    from loramerge.library.resembling import similar as found_in

    if not most >= 1:
        raise UsageError(
            "at least one can be asked for", found=str(most), hint=(Setting("most", 10),)
        )
    with open_index(create=False) as index:
        opened = (
            adapter if isinstance(adapter, Adapter) else load(find(fspath(adapter), "adapters"))
        )
        return found_in(index, opened.require_sound(), most=most, notify=notify)


def duplicates(*, most: int = 2000, notify: Notify = ignore) -> Duplicates:
    """Return the copies among the indexed adapters: the same file, or the same change in another form.

    Args:
        most: pairs that are compared exactly, of those that may be copies.

    Raises:
        FileError: if nothing is indexed yet.
    """
    from loramerge.library.copies import duplicates as found_in

    with open_index(create=False) as index:
        return found_in(index, most=most, notify=notify)


def tag(name: Named, *tags: str, remove: bool = False) -> Entry:
    """Give an adapter tags of your own, and return what is known of it then.

    They belong to its tensors: they stay when the file is moved, renamed or copied.

    Args:
        tags: several in one text are separated by commas. Capitals make no other tag.
        remove: take these away; without any, all.

    Raises:
        UsageError: if no tag is given.
        NotFound: if there is no such adapter.
    """
    given = [word for text in tags for word in map(str.strip, text.split(",")) if word]
    if not given and not remove:
        raise UsageError("a tag is missing", hint="loramerge library tag FILE TAG")
    folded = {word.casefold() for word in given}

    def change(own: Own) -> Own:
        if remove:
            kept = [one for one in own.tags if given and one.casefold() not in folded]
            return replace(own, tags=tuple(kept))
        known: dict[str, str] = {}
        for one in (*own.tags, *given):
            known.setdefault(one.casefold(), one)
        return replace(own, tags=tuple(known.values()))

    return _changed(name, change)


def note(name: Named, text: str | None) -> Entry:
    """Keep a note on an adapter in place of the one before, and return what is known of it then.

    Args:
        text: None or an empty text removes it.

    Raises:
        NotFound: if there is no such adapter.
    """
    kept = (text or "").strip() or None
    return _changed(name, lambda own: replace(own, note=kept))


def rate(name: Named, stars: int | None) -> Entry:
    """Rate an adapter, and return what is known of it then.

    Args:
        stars: 1 to 5; None or 0 removes the rating.

    Raises:
        UsageError: for another number.
        NotFound: if there is no such adapter.
    """
    if stars is not None and (type(stars) is not int or not 0 <= stars <= _STARS):
        raise UsageError("a rating is a whole number", expected=f"0 to {_STARS}", found=repr(stars))
    return _changed(name, lambda own: replace(own, rating=stars or None))


def _changed(name: Named, change: Callable[[Own], Own]) -> Entry:
    with open_index() as index:
        found = _entry(index, fspath(name))
        with index.writing():
            own = change(index.own(found.facts["identity"]))
            index.put_own(found.facts["identity"], own)
        return replace(found, own=own)


def _entry(index: Index, name: str) -> Entry:
    """Return the entry of a file, indexed now if it is new; or of one that is gone.

    Raises:
        NotFound: if there is neither.
    """
    content, reason = None, None
    try:
        path, _ = split_name(find(name, "adapters"))
        content = scan_file(index, path).content
    except NotFound as error:
        reason = error
    if content is None:
        try:
            content = require_one(index, name, lambda relative: is_called(relative, name))
        except NotFound:
            raise reason or NotFound(f"no adapter {name!r}") from None
    found = entry(index, content)
    assert found is not None  # it has the place by which it was found
    return found
