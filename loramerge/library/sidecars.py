"""Sidecars: the small files beside an adapter in which other programs keep what they know of it.

They are read and never written. Each may come from anywhere, so nothing in them is trusted: what cannot
be used is left out, and what cannot be read is reported.

Source: the files that ComfyUI Lora Manager, Stability Matrix, A1111 and its extensions for Civitai
write.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from loramerge.files.json_values import read_values, values_in
from loramerge.records import record

__all__ = ["Listing", "SidecarFacts", "listing", "sidecar_facts", "sidecars_of"]

Listing = Mapping[str, str]  # names of the files in a folder, by their lower case

_LARGEST = 16 << 20  # bytes of a sidecar that is read
_LONGEST = 20_000  # characters of a text that are kept
_MOST = 500  # entries of a list that are kept
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")

# suffix → fact → where it stands: keys from the outside in; the first that holds something counts
_CIVITAI = {
    "title": ("model.name",),
    "version": ("name",),
    "trigger_words": ("trainedWords",),
    "tags": ("model.tags", "tags"),
    "base": ("baseModel",),
    "description": ("model.description", "description"),
}
_SIDECARS: dict[str, dict[str, tuple[str, ...]]] = {
    ".metadata.json": {
        "title": ("model_name", "civitai.model.name"),
        "version": ("civitai.name",),
        "trigger_words": ("civitai.trainedWords",),
        "tags": ("tags", "civitai.model.tags"),
        "base": ("base_model", "civitai.baseModel"),
        "notes": ("notes",),
        "description": ("modelDescription", "civitai.model.description", "civitai.description"),
        "weight": ("usage_tips.strength",),
    },
    ".json": {
        "activation": ("activation text",),
        "base": ("sd version",),
        "notes": ("notes",),
        "description": ("description",),
        "weight": ("preferred weight",),
    },
    ".civitai.info": _CIVITAI,
    ".cm-info.json": {
        "title": ("UserTitle", "ModelName"),
        "version": ("VersionName",),
        "trigger_words": ("TrainedWords",),
        "tags": ("Tags",),
        "base": ("BaseModel",),
        "description": ("ModelDescription", "VersionDescription"),
    },
}
_LISTS = ("trigger_words", "tags")
_UNKNOWN = ("unknown", "other", "none")  # words for a base that a program could not tell


@record
class SidecarFacts:
    """The facts about a file that other programs keep beside it.

    Args:
        base: the model that it was made for, in the words of the program or site.
        weight: at which its author or its user applies it.
        preview: a picture.
        sources: names of the files that these facts are from, previews apart.
        problems: what could not be read, one sentence each, beginning with the file's name.
    """

    title: str | None = None
    version: str | None = None
    trigger_words: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    base: str | None = None
    notes: str | None = None
    description: str | None = None
    weight: float | None = None
    preview: Path | None = None
    sources: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """Return the facts as `--json` shows them."""
        shown = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return shown | {"preview": None if self.preview is None else str(self.preview)}


def listing(folder: str | os.PathLike[str]) -> Listing:
    """Return the names in a folder, by their lower case; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return {name.lower(): name for name in sorted((e.name for e in entries), reverse=True)}
    except OSError:
        return {}


def sidecars_of(path: Path, names: Listing | None = None) -> list[Path]:
    """Return the sidecars and previews of an adapter that exist, in the order in which they count.

    Args:
        path: a file, or the folder of an adapter.
        names: the folder's `listing`, for callers with many files in one folder.
    """
    stem = _stem(path)
    known = listing(path.parent) if names is None else names
    pictures = [f"{infix}{end}" for end in _PICTURES for infix in ("", ".preview")]
    wanted = (f"{stem}{end}".lower() for end in (*_SIDECARS, *pictures))
    return [path.with_name(known[name]) for name in wanted if name in known]


def _stem(path: Path) -> str:
    """Return a file's name without its suffix, or that of a folder as it is."""
    return path.name if path.is_dir() else path.stem


def sidecar_facts(path: Path, names: Listing | None = None) -> SidecarFacts:
    """Return the facts that other programs keep beside an adapter; nothing is written or raised.

    Args:
        path: a file, or the folder of an adapter.
        names: see `sidecars_of`.
    """
    stem, facts, problems, sources = _stem(path), dict[str, Any](), [], []
    preview = None
    for place in sidecars_of(path, names):
        fields = _SIDECARS.get(place.name[len(stem) :].lower())
        if fields is None:
            preview = preview or (place if place.is_file() else None)
            continue
        try:
            content = _content(place)
        except (OSError, ValueError) as error:
            problems.append(f"{_clean(place.name)}: {_reason(error)}")
            continue
        found = dict(_facts(content, fields))
        if found:
            sources.append(_clean(place.name))
        for name, value in found.items():
            if name in _LISTS:
                facts[name] = tuple(dict.fromkeys((*facts.get(name, ()), *value)))
            else:
                facts.setdefault(name, value)
    return SidecarFacts(**facts, preview=preview, sources=tuple(sources), problems=tuple(problems))


def _content(place: Path) -> Mapping[str, Any]:
    """Return the object in a sidecar.

    Raises:
        ValueError: if it is not an object in JSON, or too large. OSError: if it cannot be read.
    """
    status = place.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
        raise ValueError("it is not a regular file")
    if status.st_size > _LARGEST:
        raise ValueError(f"it is larger than {_LARGEST >> 20} MB")
    content = read_values(place)
    if not isinstance(content, dict):
        raise ValueError("it does not hold an object, which begins with {")
    return content


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return f"it cannot be read: {error.strerror or error}"
    text = str(error)
    return text if text.startswith("it ") else f"it is not JSON: {_clean(text)}"


def _facts(
    content: Mapping[str, Any], fields: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, Any]]:
    """Yield the facts in a sidecar's content, those of other types left out."""
    for name, places in fields.items():
        values = (_at(content, place) for place in places)
        if name in _LISTS:
            if found := next(filter(None, map(_texts, values)), ()):
                yield name, found
        elif name == "activation":
            words = _texts((next(filter(None, map(_text, values)), None) or "").split(","))
            if words:
                yield "trigger_words", words
        elif name == "weight":
            if weight := next(filter(None, map(_number, values)), None):
                yield name, weight
        else:
            text = next(filter(None, map(_text, values)), None)
            if text and (name != "base" or text.lower() not in _UNKNOWN):
                yield name, text


def _at(content: Any, place: str) -> Any:
    """Return what stands at a place; an object may stand there as a text of JSON."""
    for key in place.split("."):
        if isinstance(content, str):
            try:
                content = values_in(content)
            except ValueError:
                return None
        if not isinstance(content, dict):
            return None
        content = content.get(key)
    return content


def _number(value: Any) -> float | None:
    """Return a number other than zero."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) and value else None


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    texts = (one.strip(" ,") for one in map(_text, value[:_MOST]) if one)
    return tuple(dict.fromkeys(one for one in texts if one))


def _text(value: Any) -> str | None:
    """Return a text without tags of HTML, in which the sites keep descriptions."""
    if not isinstance(value, str):
        return None
    text = value[: 4 * _LONGEST]
    if "<" in text or "&" in text:
        text = _without_tags(text)
    return _clean(text)[:_LONGEST].strip() or None


def _clean(text: str) -> str:
    """Return a text that can be stored: half a surrogate pair cannot."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", " ")


_BREAKS = ("p", "br", "div", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "hr")


def _without_tags(text: str) -> str:
    from html.parser import HTMLParser  # few inspections need it

    parts: list[str] = []

    class Reader(HTMLParser):
        hidden = 0  # depth of elements whose text is code

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.hidden += tag in ("script", "style")
            parts.append("\n" if tag in _BREAKS else "")

        def handle_endtag(self, tag: str) -> None:
            self.hidden -= bool(self.hidden) and tag in ("script", "style")

        def handle_data(self, data: str) -> None:
            parts.append("" if self.hidden else data)

    reader = Reader(convert_charrefs=True)
    reader.feed(text)
    reader.close()
    return "\n".join(_filled(" ".join(line.split()) for line in "".join(parts).split("\n")))


def _filled(lines: Iterable[str]) -> Iterator[str]:
    return (line for line in lines if line)
