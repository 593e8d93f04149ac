"""Cards: what the page shows of an adapter, and all that is known of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loramerge.library.entries import Entry, entry
from loramerge.library.index import Index, open_index
from loramerge.library.overview import Glance
from loramerge.library.shipped import shipped_name
from loramerge.library.sidecars import Listing, SidecarFacts, listing, sidecar_facts
from loramerge.page.families import component_words
from loramerge.page.places import Places
from loramerge.page.shelf import Shelf, number_of

__all__ = ["cards", "details", "preview_of"]

Problem = dict[str, str]


def cards(shown: Sequence[Glance], shelf: Shelf, places: Places) -> list[dict[str, Any]]:
    """Return the cards of files, in their order."""
    known = _entries(one.content for one in shown)
    folders: dict[Path, Listing] = {}
    found = []
    for one in shown:
        if one.content is None:
            found.append(_of_file(one, shelf, places, _beside(one, folders)))
        elif one.content in known:  # else it was taken off since
            found.append(_of_entry(one, known[one.content], places))
    return found


def details(one: Glance, shelf: Shelf, places: Places) -> dict[str, Any]:
    """Return all that is known of a file: its card, and what the index has of it."""
    (card,) = cards([one], shelf, places) or [{}]
    known = _entries([one.content]).get(one.content or 0)
    if known is None:
        beside = _beside(one, {}).json()
        return {**card, "file": shelf.facts(one), "sidecars": {one.path: beside}}
    return {**known.json(), **card}


def preview_of(one: Glance) -> Path | None:
    """Return the picture beside a file, None if there is none."""
    known = _entries([one.content]).get(one.content or 0)
    if known is None:
        return _beside(one, {}).preview
    found = known.beside("preview")
    return None if found is None else Path(found)


def _entries(contents: Iterable[int | None]) -> dict[int, Entry]:
    wanted = [number for number in contents if number is not None]
    if not wanted:
        return {}
    with open_index(create=False) as index:
        return dict(_found(index, wanted))


def _found(index: Index, contents: Iterable[int]) -> Iterator[tuple[int, Entry]]:
    for number in contents:
        if (found := entry(index, number)) is not None:
            yield number, found


def _beside(one: Glance, folders: dict[Path, Listing]) -> SidecarFacts:
    path = Path(one.path)
    if path.parent not in folders:
        folders[path.parent] = listing(path.parent)
    return sidecar_facts(path, folders[path.parent])


def _of_entry(one: Glance, known: Entry, places: Places) -> dict[str, Any]:
    facts = known.facts
    errors = [*facts.get("problems", ()), *filter(None, (p.error for p in known.places))]
    warnings = [text for p in known.places for text in p.sidecars.get("problems", ())]
    if facts.get("not_sketched"):
        warnings.append(str(facts["not_sketched"]))
    if known.missing:
        errors.append("the file is gone")
    return {
        **_common(one, places),
        **_said(facts),
        "rank": known.rank,
        "title": known.beside("title") or facts.get("title"),
        "trigger_words": known.trigger_words,
        "tags": known.tags,
        "own_tags": list(known.own.tags),
        "rating": known.own.rating,
        "note": known.own.note,
        "usual_weight": known.beside("weight"),
        "problems": _problems(errors, warnings),
        "picture": known.beside("preview") is not None,
        "copies": len(known.places),
        "indexed": True,
    }


def _of_file(one: Glance, shelf: Shelf, places: Places, beside: SidecarFacts) -> dict[str, Any]:
    facts = shelf.facts(one)
    indexed = shelf.is_indexed(one)
    errors = [*facts.get("problems", ())]
    if indexed:  # the index knows why it cannot be read
        with open_index(create=False) as index:
            found = index.places("path = ?", one.path)
        errors += [place.error for place in found if place.error]
    ranks = sorted(int(rank) for rank in facts.get("ranks") or ())
    words = (*(facts.get("trigger_words") or ()), *beside.trigger_words)
    return {
        **_common(one, places),
        **_said(facts),
        "size": facts.get("size") or one.size,
        "rank": "–".join(map(str, dict.fromkeys(ranks[:1] + ranks[-1:]))),
        "title": beside.title or facts.get("title"),
        "trigger_words": list(dict.fromkeys(words)),
        "tags": list(beside.tags),
        "own_tags": [],
        "rating": None,
        "note": None,
        "usual_weight": beside.weight,
        "problems": _problems(errors, beside.problems),
        "picture": beside.preview is not None,
        "copies": 1,
        "indexed": indexed,
    }


def _common(one: Glance, places: Places) -> dict[str, Any]:
    name = shipped_name(one.path)
    return {
        "id": number_of(one),
        "name": name or one.name,
        "path": one.path,
        "reference": places.reference(Path(one.path)),
        "size": one.size,
        "modified": one.modified / 1e9,
        "missing": one.missing,
        "shipped": name is not None,
    }


def _said(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the header of a file says."""
    kinds: Mapping[str, int] = facts.get("kinds") or {}
    return {
        "what": facts.get("what"),
        "family": facts.get("family"),
        "components": component_words(facts.get("family"), facts.get("components") or ()),
        "trained_on": facts.get("trained_on"),
        "kinds": sorted(kinds, key=lambda kind: -kinds[kind]),
        "ranks": dict(facts.get("ranks") or {}),
        "modules": facts.get("modules"),
    }


def _problems(errors: Iterable[str], warnings: Iterable[str]) -> list[Problem]:
    return [
        *({"severity": "error", "text": text} for text in dict.fromkeys(errors)),
        *({"severity": "warning", "text": text} for text in dict.fromkeys(warnings)),
    ]
