"""Write a model card: the parameters, the pictures, and the file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from loramerge.adapter import Adapter
from loramerge.errors import MissingFile, Setting, UsageError
from loramerge.events import Note
from loramerge.files.atomic import check_target
from loramerge.files.folders import IMAGE_SUFFIXES
from loramerge.files.reports import check_apart
from loramerge.files.writer import write_bytes
from loramerge.library.paths import below
from loramerge.library.shipped import is_shipped
from loramerge.library.sidecars import sidecars_of
from loramerge.steps.inputs import find_told, read_adapter
from loramerge.steps.parameters import Context, Doc, Verb
from loramerge.steps.prediction import Prediction
from loramerge.steps.shown import Shown
from loramerge.steps.writing import Force

__all__ = ["VERB", "Card", "CardResult", "card"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """Write a model card for hubs: a README.md with the fields they expect.

    What the file's header, the files beside it and its recipe tell is written, and nothing is
    guessed: a field that is not known is left out, and named.
    """

    file: Annotated[
        str, Doc("Adapter file, PEFT folder, or name.", ("FILE",), completes="adapters")
    ]
    base_model: Annotated[
        str | None,
        Doc(
            "Name of the base on the hub, as OWNER/NAME [default: what the configuration of a PEFT "
            "folder names].",
            metavar="NAME",
        ),
    ] = None
    license: Annotated[
        str | None,
        Doc("License [default: that of the file's metadata].", metavar="NAME"),
    ] = None
    picture: Annotated[
        tuple[str, ...],
        Doc(
            "Picture in the card's folder, or below; may be repeated [default: those beside FILE "
            "with its name].",
            metavar="FILE",
            path=True,
        ),
    ] = ()
    output: Annotated[
        str | None,
        Doc("Output path [default: README.md beside FILE].", ("--output", "-o"), "FILE",
            recipe=False, path=True),
    ] = None  # fmt: skip
    force: Force = False


@dataclass(repr=False)
class CardResult(Shown):
    """The card that was written.

    Args:
        header: its fields for hubs.
        missing: fields that hubs expect and that are not known.
    """

    headline = ("output", "missing")

    output: str
    path: str
    header: dict[str, Any]
    missing: list[str]

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {
            "outputs": [self.output],
            "path": self.path,
            "header": self.header,
            "missing": self.missing,
        }


def card(parameters: Card, context: Context = Context()) -> CardResult:
    """Write the card.

    Raises:
        UsageError: for a name that is that of an adapter in memory, or a picture elsewhere.
        OutputExists: unless `force`, and for the described file itself.
    """
    from loramerge.report.card import card_text
    from loramerge.verbs.card.content import EXPECTED, card_content

    path = _path(parameters, context)
    target = _output(parameters, path)
    check_target(target, force=parameters.force)
    check_apart(target, Setting("output"), [path])
    adapter = read_adapter(path)
    pictures = _pictures(parameters, path, target, context)
    content = card_content(
        adapter,
        path,
        pictures,
        base_model=parameters.base_model,
        license=parameters.license,
        context=context,
    )
    missing = [name for name in EXPECTED if not content.header[name]]
    write_bytes(target, card_text(content).encode("utf-8", "replace"), force=parameters.force)
    if missing:
        options = [Setting(name) for name in missing if name in ("base_model", "license")]
        advice = ["; give ", *_joined(options)] if options else []
        context.notify(Note((f"left out, as not known: {', '.join(missing)}", *advice)))
    header = {name: value for name, value in content.header.items() if value}
    return CardResult(str(target), str(path), header, missing)


def _joined(options: Sequence[Setting]) -> Iterator[str | Setting]:
    for number, one in enumerate(options):
        yield from ((" or ", one) if number else (one,))


def predict(parameters: Card, context: Context = Context()) -> Prediction:
    """Predict what reading the header takes."""
    known = context.known.get(parameters.file)  # of a step that is to come, its shapes
    adapter = known if isinstance(known, Adapter) else read_adapter(_path(parameters, context))
    return Prediction(modules=len(adapter.deltas))


def output_path(parameters: Card, context: Context = Context()) -> Path:
    """Return the path of the card that `card` writes."""
    return _output(parameters, _path(parameters, context))


VERB = Verb("card", Card, "document", card, predict, output_path=output_path)


def _path(parameters: Card, context: Context) -> Path:
    """Return the file that is described.

    Raises:
        UsageError: if the name is that of an adapter in memory.
    """
    known = context.known.get(parameters.file)
    if isinstance(known, Adapter):
        raise UsageError(
            f"{parameters.file!r} is in memory, and a card describes a file",
            hint="add save: FILE to the step that makes it",
        )
    return known if known is not None else find_told(parameters.file, "adapters", context)


def _output(parameters: Card, path: Path) -> Path:
    """Return the card's place beside a file, in a folder, or here for what comes with loramerge."""
    if parameters.output is not None:
        return Path(parameters.output)
    if is_shipped(path):
        return Path("README.md")
    return (path if path.is_dir() else path.parent) / "README.md"


def _pictures(parameters: Card, path: Path, target: Path, context: Context) -> list[str]:
    """Return the pictures as paths from the card.

    Raises:
        MissingFile: if one is not there.
        UsageError: if one is not in the card's folder, or below, or not named like a picture.
    """
    folder = target.parent
    if not parameters.picture:
        beside = (one for one in sidecars_of(path) if one.suffix.lower() in IMAGE_SUFFIXES)
        given = [one for one in beside if one.is_file() and _from(one, folder) is not None]
    else:
        given = [below(context.root, one) for one in parameters.picture]
    found = []
    for picture in given:
        if not picture.is_file():
            raise MissingFile("no such picture", file=picture)
        if picture.suffix.lower() not in IMAGE_SUFFIXES:
            raise UsageError(
                "this is not a picture", file=picture, expected=", ".join(sorted(IMAGE_SUFFIXES))
            )
        relative = _from(picture, folder)
        if relative is None:
            raise UsageError(
                "a picture of a card must be in the card's folder, or below",
                file=picture,
                expected=f"a file in {folder}",
                hint="copy it there",
            )
        found.append(relative)
    return found


def _from(path: Path, folder: Path) -> str | None:
    """Return a path from a folder on, None if it is not below it."""
    try:
        return Path(os.path.realpath(path)).relative_to(os.path.realpath(folder)).as_posix()
    except ValueError:
        return None
