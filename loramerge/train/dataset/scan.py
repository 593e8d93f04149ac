"""The pictures to train on: found in a folder, with their captions, repeats and regularisation.

    scan(Path("pictures"), trigger="zuzu").pictures

A caption is looked for in `NAME.txt`, `NAME.caption`, the folder's `metadata.jsonl`
(`{"file_name": …, "text": …}`), and the folder's name where it is of kohya's form `10_zuzu girl`, whose
number, up to 1000, says how often an epoch shows each of its pictures.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loramerge.errors import FileError, FormatError, MissingFile, listed
from loramerge.events import Note, Notify, Progress, Warn, ignore
from loramerge.files.folders import CAPTION_SUFFIXES, LISTING, image_files
from loramerge.files.json_values import values_in
from loramerge.train.dataset.buckets import Size
from loramerge.train.dataset.images import size_of

__all__ = ["Dataset", "Picture", "scan"]

_KOHYA = re.compile(r"(\d+)_(.*)")
_MOST_REPEATS = 1000  # of a folder's name; a larger number is a date or a count of something else


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, of which only the header has been read.

    Args:
        size: width and height as it is meant to be seen.
        caption: None where there is none.
        repeats: how often an epoch shows it.
        regular: whether it shows what the model is to keep, not what it is to learn.
    """

    path: Path
    size: Size
    caption: str | None
    repeats: int = 1
    regular: bool = False


@dataclass
class Dataset:
    """What a scan found.

    Args:
        pictures: those of the subject first, each in the order of the folder.
        unreadable: (file, why) of what has a picture's name and is none.
        sources: where captions came from → how many.
    """

    folder: Path
    pictures: list[Picture] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)

    @property
    def subject(self) -> list[Picture]:
        """The pictures of what is to be learned."""
        return [picture for picture in self.pictures if not picture.regular]

    @property
    def regular(self) -> list[Picture]:
        """The regularisation pictures."""
        return [picture for picture in self.pictures if picture.regular]

    def without(self, broken: dict[Path, str]) -> Dataset:
        """Return the same without pictures that turned out to be unreadable."""
        kept = [picture for picture in self.pictures if picture.path not in broken]
        return replace(self, pictures=kept, unreadable=[*self.unreadable, *broken.items()])


def scan(
    folder: Path,
    *,
    repeats: int = 1,
    regularisation: Path | None = None,
    notify: Notify = ignore,
) -> Dataset:
    """Find the pictures below a folder; of each only the header and the caption are read.

    Args:
        repeats: how often an epoch shows each picture, where the folder's name does not say.
        regularisation: folder of pictures of what the model is to keep.
        notify: warned of what cannot be read.

    Raises:
        MissingFile: if there is no such folder, or no picture in it.
        FormatError: if a `metadata.jsonl` cannot be understood.
    """
    found = Dataset(folder)
    _add(found, folder, repeats, regular=False, notify=notify)
    if not found.pictures:
        raise MissingFile(
            "there are no images in this folder",
            file=folder,
            expected="png, jpg, webp, bmp, gif or tiff files",
            found=f"{len(found.unreadable)} that cannot be read" if found.unreadable else None,
        )
    if regularisation is not None:
        before = len(found.pictures)
        _add(found, regularisation, 1, regular=True, notify=notify)
        if len(found.pictures) == before:
            raise MissingFile(
                "there are no regularisation images in this folder", file=regularisation
            )
    if found.unreadable:
        names = [f"{path.name} ({why})" for path, why in found.unreadable]
        notify(Warn(f"{len(names)} images cannot be read and are left out: {listed(names, 3)}"))
    return found


def _add(found: Dataset, folder: Path, repeats: int, *, regular: bool, notify: Notify) -> None:
    if not folder.is_dir():
        raise MissingFile("there is no such folder of images", file=folder)
    paths = list(image_files(folder))
    inner = {path.parent for path in paths}
    above = {place for one in inner for place in one.parents if place.is_relative_to(folder)}
    _note_names(inner | above, notify)
    texts: dict[Path, dict[str, str]] = {}
    for index, path in enumerate(paths, 1):
        if path.parent not in texts:
            texts[path.parent] = _metadata(path.parent)
        count, words = _said_by(path.parent, folder)
        try:
            size = size_of(path)
            caption, source = _caption(path, texts[path.parent], words)
        except FileError as error:
            found.unreadable.append((path, error.problem))
            continue
        found.sources[source] += 1
        shown = 1 if regular else count or repeats
        found.pictures.append(Picture(path, size, caption, shown, regular))
        if index % 500 == 0 or index == len(paths):
            notify(Progress(f"looking at {folder.name}", index, len(paths), "pictures"))


def _said_by(folder: Path, root: Path) -> tuple[int | None, str | None]:
    """Return repeats and words of the nearest folder named as kohya does, at or below the root."""
    for place in (folder, *folder.parents):
        match = _KOHYA.fullmatch(place.name)
        if match and 0 < _repeats(match[1]) <= _MOST_REPEATS:
            return _repeats(match[1]), match[2].replace("_", " ").strip() or None
        if place == root:
            break
    return None, None


def _repeats(digits: str) -> int:
    """Return the number; for one of very many digits some number that is too large."""
    return int(digits) if len(digits) <= 9 else 10**9


def _note_names(folders: Iterable[Path], notify: Notify) -> None:
    """Say of which folders the number is taken as a part of the name."""
    names = sorted(
        folder.name
        for folder in folders
        if (match := _KOHYA.fullmatch(folder.name)) and _repeats(match[1]) > _MOST_REPEATS
    )
    if names:
        notify(
            Note(
                f"numbers over {_MOST_REPEATS} at the start of a folder's name are a part of the name, "
                f"not repeats: {listed(names, 3)}"
            )
        )


def _caption(path: Path, metadata: dict[str, str], words: str | None) -> tuple[str | None, str]:
    """Return a picture's caption and where it came from."""
    for suffix in CAPTION_SUFFIXES:
        sidecar = path.with_suffix(suffix)
        if sidecar.is_file():
            return _text(sidecar), suffix
    if path.name in metadata:
        return metadata[path.name], LISTING
    return (words, "folder") if words else (None, "none")


def _text(path: Path) -> str:
    """Return the text of a sidecar in one line."""
    try:
        return " ".join(path.read_text("utf-8-sig").split())
    except UnicodeDecodeError:
        raise FileError("its caption is not UTF-8 text", file=path) from None
    except OSError as error:
        raise FileError(f"its caption cannot be read ({error.strerror})", file=path) from None


def _metadata(folder: Path) -> dict[str, str]:
    """Return file name → text of a folder's `metadata.jsonl`.

    Raises:
        FormatError: naming the line.
    """
    path = folder / LISTING
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), 1):
        if line.strip():
            name, text = _entry(line, path, number)
            found[name] = text
    return found


def _entry(line: str, path: Path, number: int) -> tuple[str, str]:
    try:
        content: dict[str, Any] = values_in(line)
        return str(content["file_name"]), " ".join(str(content["text"]).split())
    except (ValueError, TypeError, KeyError):
        raise FormatError(
            f"line {number} cannot be understood",
            file=path,
            expected='{"file_name": "a.png", "text": "a caption"}',
            found=line[:80],
        ) from None
