"""The page's own files, and what they must not hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from posixpath import dirname, join, normpath

import loramerge.page

STATIC = Path(loramerge.page.__file__).parent / "static"

_IMPORT = re.compile(r'(?:\bfrom|\bimport)\s*\(?\s*"(\.[^"]+)"')
_NAMES = re.compile(r'^import \{([^}]*)\} from "(\.[^"]+)"', re.M)
_EXPORT = re.compile(r"^export (?:async )?(?:function\*?|const|let|class) (\w+)", re.M)
_NAMESPACE = "http://www.w3.org/2000/svg"

# what a script must not do, by the words that do it
FORBIDDEN = {
    "markup from text": r"\b(?:innerHTML|outerHTML|insertAdjacentHTML|srcdoc|DOMParser)\b"
    r"|createContextualFragment|document\.write",
    "code from text": r"\beval\s*\(|\bnew Function\b|\bset(?:Timeout|Interval)\(\s*[\"'`]|javascript:",
    "a dialog that blocks": r"(?<![\w.])(?:alert|confirm|prompt)\s*\(",
    "a style or handler as text": r"""setAttribute\(\s*["'`](?:on|style)|[{,]\s*style:""",
    "a request elsewhere": r"(?:https?:)?//(?=[\w.-]+\.\w)"
    r"|\bsendBeacon\b|\bWebSocket\b|\bimportScripts\b",
}
_LINES = 300  # of a file, at most
_IN_HTML = {
    "an inline script": r"<script(?![^>]*\bsrc=)[^>]*>",
    "an inline style": r"<style|\sstyle=",
    "an inline handler": r"\son\w+=",
    "a request elsewhere": r"""(?:src|href)=["'](?!/static/|#)""",
}
_IN_CSS = {"a request": r"url\(|@import|@font-face"}


def texts() -> dict[str, str]:
    """Return the texts of all files of the page, by their names below `static/`."""
    return {
        path.relative_to(STATIC).as_posix(): path.read_text("utf-8")
        for path in sorted(STATIC.rglob("*"))
        if path.is_file()
    }


def faults(files: Mapping[str, str]) -> list[str]:
    """Return what is wrong with the files of a page."""
    return [
        *_words(files),
        *_links(files),
        *(f"{name} is too long" for name, text in files.items() if text.count("\n") > _LINES),
    ]


def _words(files: Mapping[str, str]) -> Iterator[str]:
    rules = {".js": FORBIDDEN, ".html": _IN_HTML, ".css": _IN_CSS, ".svg": _IN_HTML}
    for name, text in files.items():
        searched = text.replace(_NAMESPACE, "")
        for what, pattern in rules[Path(name).suffix].items():
            for found in re.finditer(pattern, searched):
                line = searched[: found.start()].count("\n") + 1
                yield f"{name}:{line}: {what}: {found.group()}"


def _links(files: Mapping[str, str]) -> Iterator[str]:
    """Yield imports of what is not there, and modules that nobody imports."""
    scripts = {name: text for name, text in files.items() if name.endswith(".js")}
    exported = {name: set(_EXPORT.findall(text)) for name, text in scripts.items()}
    reached, waiting = set(), ["app.js"]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        for target in _IMPORT.findall(scripts[name]):
            path = normpath(join(dirname(name), target))
            if path in scripts:
                waiting.append(path)
            else:
                yield f"{name} imports {target}, which does not exist"
    yield from (f"nobody imports {name}" for name in scripts if name not in reached)
    used: set[tuple[str, str]] = set()
    for name, text in scripts.items():
        for words, target in _NAMES.findall(text):
            path = normpath(join(dirname(name), target))
            for word in filter(None, (part.split(" as ")[0].strip() for part in words.split(","))):
                used.add((path, word))
                if path in exported and word not in exported[path]:
                    yield f"{name} imports {word} from {path}, which has none"
                own = next(p for p in words.split(",") if p.split(" as ")[0].strip() == word)
                local = own.split(" as ")[-1].strip()
                if len(re.findall(rf"\b{local}\b", text)) < 2:
                    yield f"{name} imports {local} and does not use it"
    for name, words in exported.items():
        for word in sorted(words):
            if (name, word) not in used and not (name.startswith("views/") and word == "show"):
                yield f"nobody imports {word} of {name}"
