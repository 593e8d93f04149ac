"""The commands of `library` that ask its index, and those that keep one's own words in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from loramerge.cli import show
from loramerge.cli.command import emit
from loramerge.cli.options import json_options
from loramerge.cli.session import Session
from loramerge.errors import listed

if TYPE_CHECKING:
    from loramerge.library.copies import Duplicates
    from loramerge.library.entries import Entry
    from loramerge.library.resembling import Resembling

__all__ = ["COMMANDS"]

_QUIET = click.Option(["--quiet", "-q"], is_flag=True, help="Show warnings only.")
_WORDS = 40  # characters of trigger words in a table
_CELLS = ("adapter", "family", "rank", "size", "trigger words", "rating")


@click.command("search", params=json_options(), epilog="Example: loramerge library search cat")
@click.argument("words", metavar="[WORD]...", nargs=-1)
@click.option("--family", metavar="FAMILY", help="Only adapters for this family, such as sdxl.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Only with this tag. Repeatable.")
@click.option(
    "--rating",
    metavar="N",
    type=click.IntRange(1, 5),
    help="Only those that you rated so or better.",
)
@click.option("--missing", is_flag=True, help="Only files that are gone.")
@click.option("--most", type=click.IntRange(1), metavar="N", default=50, show_default=True,
              help="Number of adapters to list; --json has all.")  # fmt: skip
def search(
    words: tuple[str, ...],
    family: str | None,
    tags: tuple[str, ...],
    rating: int | None,
    missing: bool,
    most: int,
    as_json: bool,
    json_file: str | None,
) -> None:
    """List the indexed adapters that have all WORDs.

    The best come first; without a WORD all are listed. A WORD is the beginning of a word in the name,
    trigger words, tags, family, comment, sidecars, or your own tags and notes, or the first digits of
    a hash.
    """
    from loramerge.library import functions

    found = functions.search(*words, family=family, tags=tags, rating=rating, missing=missing)

    def render() -> None:
        if not found:
            show.line("Nothing was found. `loramerge library scan` indexes new files.")
        show.table((_row(one) for one in found[:most]), _CELLS)
        if len(found) > most:
            show.line(f"… and {len(found) - most} more (--most {len(found)} shows all)")

    emit([one.json() for one in found], as_json, json_file, render)


def _row(one: Entry) -> tuple[str, ...]:
    what = one.facts.get("what")
    family = one.facts.get("family") or ("" if what == "adapter" else f"({what})")
    words = ", ".join(one.trigger_words)
    words = words if len(words) <= _WORDS else f"{words[: _WORDS - 1]}…"
    gone = " (missing)" if one.missing else ""
    stars = "★" * (one.own.rating or 0)
    return (
        f"{one.name}{gone}",
        str(family),
        one.rank,
        show.size(one.facts.get("size")),
        words,
        stars,
    )


@click.command("show", params=json_options(), epilog="Example: loramerge library show style")
@click.argument("file", metavar="FILE")
def show_one(file: str, as_json: bool, json_file: str | None) -> None:
    """Show all that is known of an adapter.

    That is what its file says, what other programs keep beside it, and your own tags and notes.
    """
    from loramerge.library import functions

    found = functions.show(file)
    emit(found.json(), as_json, json_file, lambda: _render(found))


def _render(one: Entry) -> None:
    facts = one.facts
    beside = [place.sidecars for place in one.places]
    tags = ", ".join(f"{tag} ×{count}" for tag, count in facts.get("tags", ())[:20])
    rows = [
        *(("was at" if one.missing else "file", place.path) for place in one.places),
        ("title", one.beside("title") or facts.get("title")),
        ("what it is", " ".join(filter(None, (facts.get("family"), facts.get("what"))))),
        ("dialect", facts.get("dialect")),
        ("rank", one.rank),
        ("modules", facts.get("modules")),
        ("types", ", ".join(facts.get("dtypes", ()))),
        ("size", show.size(facts.get("size"))),
        ("trained on", facts.get("trained_on") or one.beside("base")),
        ("trigger words", ", ".join(one.trigger_words)),
        ("tags", ", ".join(one.tags)),
        ("words in captions", tags),
        ("comment", facts.get("comment")),
        *((name, one.beside(name)) for name in ("version", "notes", "description")),
        ("usual weight", one.beside("weight")),
        ("preview", one.beside("preview")),
        (
            "read beside it",
            ", ".join(sorted({name for b in beside for name in b.get("sources", ())})),
        ),
        ("your note", one.own.note),
        ("your rating", "★" * (one.own.rating or 0)),
        ("sha256", facts["sha256"]),
        ("AutoV2", facts.get("autov2")),
        ("AutoV3", facts.get("autov3")),
        ("not compared", facts.get("not_sketched")),
        *(("problem", problem) for problem in facts.get("problems", ())),
        *(("problem", problem) for b in beside for problem in b.get("problems", ())),
    ]
    show.table([(name, str(value)) for name, value in rows if value])


@click.command("similar", params=[*json_options(), _QUIET],
               epilog="Example: loramerge library similar style")  # fmt: skip
@click.argument("file", metavar="FILE")
@click.option("--most", type=click.IntRange(1, 1000), metavar="N", default=10, show_default=True,
              help="Number of adapters to list.")  # fmt: skip
def similar(file: str, most: int, as_json: bool, json_file: str | None, quiet: bool) -> None:
    """List the indexed adapters nearest to FILE.

    They change a model most like FILE does. Copies are found however they were rescaled, resized,
    converted or factored anew.
    """
    from loramerge.library import functions

    with Session(quiet=quiet) as session:
        found = functions.similar(file, most=most, notify=session.notify)
    emit([one.json() for one in found], as_json, json_file, lambda: _render_similar(found))


def _render_similar(found: Sequence[Resembling]) -> None:
    if not found:
        show.line("The index holds no other adapter that can be compared with this one.")
        return
    for one in found:
        if one.copy:
            show.line(f"{one.words}.")
    if all(one.words == "unrelated" for one in found):
        show.line("Nothing in the index is related to it. The least different adapters:")
    rows = [
        (
            one.entry.path.name,
            f"{'' if one.exact else '≈ '}{round(one.cosine, 3 if one.exact else 2) + 0.0:g}",
            f"copy ({one.kind})" if one.copy else one.words,
        )
        for one in found
    ]
    show.table(rows, ("adapter", "cosine", "relation"))
    for one in found:
        if one.problem:
            show.line(f"estimated only: {one.entry.path.name}: {one.problem}")


@click.command("duplicates", params=[*json_options(), _QUIET],
               epilog="Example: loramerge library duplicates")  # fmt: skip
@click.option("--most", type=click.IntRange(1), metavar="N", default=2000, show_default=True,
              help="Number of likely pairs of copies that are compared exactly.")  # fmt: skip
def duplicates(most: int, as_json: bool, json_file: str | None, quiet: bool) -> None:
    """List copies among the indexed adapters.

    That is the same file twice, or the same change in another form. Copies are found however they
    were rescaled, resized, converted or factored anew. Nothing is deleted.
    """
    from loramerge.library import functions

    with Session(quiet=quiet) as session:
        found = functions.duplicates(most=most, notify=session.notify)
    emit(found.json(), as_json, json_file, lambda: _render_duplicates(found))


def _render_duplicates(found: Duplicates) -> None:
    files = show.count(found.files, "file")
    pairs = show.count(len(found.pairs), "pair") if found.pairs else "no pair"
    same = show.count(len(found.same), "file") if found.same else "no file"
    show.line(f"{files}: {same} at several places, {pairs} of copies.")
    for one in found.same:
        show.line(f"the same file: {listed([place.path for place in one.places], 8)}")
    for _, group in found.groups():
        for pair in group:
            show.line(f"{pair.words}.")
    if found.unchecked:
        show.line(f"{found.unchecked} more pairs may be copies; --most compares more of them.")
    for path, problem in sorted(found.problems.items()):
        show.line(f"not compared: {path}: {problem}")


# --- one's own words


@click.command(
    "tag", params=json_options(), epilog="Example: loramerge library tag style anime red"
)
@click.argument("file", metavar="FILE")
@click.argument("tags", metavar="[TAG]...", nargs=-1)
@click.option("--remove", is_flag=True, help="Take the tags away; without a TAG all of them.")
def tag(
    file: str, tags: tuple[str, ...], remove: bool, as_json: bool, json_file: str | None
) -> None:
    """Give an adapter tags of your own.

    They stay with it when it is moved or renamed.
    """
    from loramerge.library import functions

    _show_own(functions.tag(file, *tags, remove=remove), as_json, json_file)


@click.command("note", params=json_options(),
               epilog='Example: loramerge library note style "best at 0.7"')  # fmt: skip
@click.argument("file", metavar="FILE")
@click.argument("text", metavar="TEXT")
def note(file: str, text: str, as_json: bool, json_file: str | None) -> None:
    """Keep a note on an adapter.

    It takes the place of the one before; an empty TEXT removes it.
    """
    from loramerge.library import functions

    _show_own(functions.note(file, text), as_json, json_file)


@click.command("rate", params=json_options(), epilog="Example: loramerge library rate style 4")
@click.argument("file", metavar="FILE")
@click.argument("stars", metavar="0..5", type=click.IntRange(0, 5))
def rate(file: str, stars: int, as_json: bool, json_file: str | None) -> None:
    """Rate an adapter from 1 to 5; 0 removes the rating."""
    from loramerge.library import functions

    _show_own(functions.rate(file, stars), as_json, json_file)


def _show_own(found: Entry, as_json: bool, json_file: str | None) -> None:
    own = found.own
    content = {"path": found.places[0].path} | own.json()
    rows = [("tags", ", ".join(own.tags)), ("note", own.note), ("rating", "★" * (own.rating or 0))]

    def render() -> None:
        show.table([("file", content["path"]), *((name, value) for name, value in rows if value)])

    emit(content, as_json, json_file, render)


COMMANDS = (search, show_one, similar, duplicates, tag, note, rate)
