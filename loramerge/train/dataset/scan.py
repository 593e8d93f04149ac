"""The images to train on, with their captions, repeats and regularisation images.

    scan(Path("images"), repeats=2).pictures

The caption comes from the first of these that exists: `NAME.txt`, `NAME.caption`, the folder's
`metadata.jsonl` (`{"file_name": …, "text": …}`), a folder named as in kohya's scripts (`10_zuzu girl`).
The number in such a folder's name, up to 1000, is the number of repeats in an epoch.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Collection, Iterable
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
    """One image; only its header has been read.

    Args:
        size: width and height, after EXIF rotation.
        caption: None if it has none.
        repeats: times that an epoch shows it.
        regular: True for a regularisation image, False for an image of the subject.
    """

    path: Path
    size: Size
    caption: str | None
    repeats: int = 1
    regular: bool = False


@dataclass
class Dataset:
    """The images of a run.

    Args:
        pictures: those of the subject, then those of regularisation, in the order of the folders.
        unreadable: (file, reason) of files that are named like images and cannot be read.
        sources: source of captions → number of images.
    """

    folder: Path
    pictures: list[Picture] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)

    @property
    def subject(self) -> list[Picture]:
        """The images of the subject."""
        return [picture for picture in self.pictures if not picture.regular]

    @property
    def regular(self) -> list[Picture]:
        """The regularisation images."""
        return [picture for picture in self.pictures if picture.regular]

    def without(self, broken: dict[Path, str]) -> Dataset:
        """Return the same without images that turned out to be unreadable."""
        kept = [picture for picture in self.pictures if picture.path not in broken]
        return replace(self, pictures=kept, unreadable=[*self.unreadable, *broken.items()])


def scan(
    folder: Path,
    *,
    repeats: int = 1,
    regularisation: Path | None = None,
    without: Collection[Path] = (),
    notify: Notify = ignore,
) -> Dataset:
    """Find the images below a folder; read only their headers and captions.

    Args:
        repeats: times that an epoch shows each image, if the folder's name does not give a number.
        regularisation: folder of regularisation images.
        without: folders that are not searched: those the run itself writes.
        notify: gets a warning about files that cannot be read.

    Raises:
        MissingFile: if the folder does not exist or holds no image.
        FormatError: if a line of `metadata.jsonl` is not valid.
    """
    found = Dataset(folder)
    _add(found, folder, repeats, regular=False, without=without, notify=notify)
    if not found.pictures:
        raise MissingFile(
            "there are no images in this folder",
            file=folder,
            expected="png, jpg, webp, avif, bmp, gif or tiff files",
            found=f"{len(found.unreadable)} that cannot be read" if found.unreadable else None,
        )
    if regularisation is not None:
        before = len(found.pictures)
        _add(found, regularisation, 1, regular=True, without=without, notify=notify)
        if len(found.pictures) == before:
            raise MissingFile(
                "there are no regularisation images in this folder", file=regularisation
            )
    if found.unreadable:
        names = [f"{path.name} ({why})" for path, why in found.unreadable]
        are = "image cannot be read and is" if len(names) == 1 else "images cannot be read and are"
        notify(Warn(f"{len(names)} {are} left out: {listed(names, 3)}"))
    return found


def _add(
    found: Dataset,
    folder: Path,
    repeats: int,
    *,
    regular: bool,
    without: Collection[Path],
    notify: Notify,
) -> None:
    if not folder.is_dir():
        raise MissingFile("there is no such folder of images", file=folder)
    paths = list(image_files(folder, without))
    inner = {path.parent for path in paths}
    above = {place for one in inner for place in one.parents if place.is_relative_to(folder)}
    _note_names(inner | above, notify)
    texts: dict[Path, dict[str, str]] = {}
    for index, path in enumerate(paths, 1):
        if path.parent not in texts:
            texts[path.parent] = _metadata(path.parent)
        count, words = _from_folder_name(path.parent, folder)
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
            notify(Progress(f"scanning {folder.name}", index, len(paths), "images"))


def _from_folder_name(folder: Path, root: Path) -> tuple[int | None, str | None]:
    """Return repeats and words of the nearest folder named as in kohya's scripts, up to the root."""
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
    """Notify of the folders whose number is taken as a part of the name."""
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
    """Return an image's caption and its source."""
    for suffix in CAPTION_SUFFIXES:
        sidecar = path.with_suffix(suffix)
        if sidecar.is_file():
            return _text(sidecar), suffix
    if path.name in metadata:
        return metadata[path.name], LISTING
    return (words, "folder") if words else (None, "none")


def _text(path: Path) -> str:
    """Return the text of a sidecar in one line: UTF-8, or what its byte order mark says."""
    try:
        raw = path.read_bytes()
        return " ".join(raw.decode(_encoding(raw)).split())
    except UnicodeDecodeError:
        raise FileError("its caption is not UTF-8 or UTF-16 text", file=path) from None
    except OSError as error:
        raise FileError(f"its caption cannot be read ({error.strerror})", file=path) from None


def _encoding(raw: bytes) -> str:
    marks = {
        codecs.BOM_UTF8: "utf-8-sig",
        codecs.BOM_UTF16_LE: "utf-16",
        codecs.BOM_UTF16_BE: "utf-16",
    }
    return next((name for mark, name in marks.items() if raw.startswith(mark)), "utf-8")


def _metadata(folder: Path) -> dict[str, str]:
    """Return file name → text of a folder's `metadata.jsonl`.

    Raises:
        FormatError: naming the line.
    """
    path = folder / LISTING
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    raw = path.read_bytes()
    try:
        lines = raw.decode(_encoding(raw)).splitlines()
    except UnicodeDecodeError:
        raise FormatError("the captions are not UTF-8 or UTF-16 text", file=path) from None
    for number, line in enumerate(lines, 1):
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
            f"line {number} is not a valid entry",
            file=path,
            expected='{"file_name": "a.png", "text": "a caption"}',
            found=line[:80],
        ) from None
