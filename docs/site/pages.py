"""Bring documents from outside of docs/ into the site, and let links between files lead to pages.

A document that mkdocs.yml does not name gets a place among the references.

The documents are written to be read where they lie. A link to one that has a page leads to the page;
a link to a file without a page, such as a source file, is shown as its text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(__file__).resolve().parent
# path in the repository → address in the site
OUTSIDE = {
    "README.md": "index.md",
    "README.ja.md": "ja/index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "measurements.md",
}
_PATHS = {address: path for path, address in OUTSIDE.items()}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Put documents that the navigation does not name under its section of references."""
    named = set(_addresses(config.nav))
    (references,) = (section["Reference"] for section in config.nav if "Reference" in section)
    docs = Path(config.docs_dir)
    found = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    references += [address for address in found if address not in named]
    return config


def _addresses(nav: Any) -> Iterator[str]:
    """Yield the addresses in a navigation, or a part of one."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from _addresses(part)


def on_files(files: Any, config: Any) -> Any:
    """Add the documents from outside, and the style of the site."""
    for path, address in OUTSIDE.items():
        text = (ROOT / path).read_text("utf-8")
        files.append(File.generated(config, address, content=text))
    files.append(File.generated(config, "site.css", content=(SITE / "site.css").read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Return a page whose links lead to pages; blocks of code stay as they are."""
    address = page.file.src_uri
    path = _PATHS.get(address, f"docs/{address}")
    known = {file.src_uri for file in files}
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        part if part.startswith("```") else with_links(part, path, address, known) for part in parts
    )


def with_links(text: str, path: str, address: str, known: set[str]) -> str:
    """Return text whose relative links are those of the site.

    Args:
        path: where the document lies in the repository.
        address: its address in the site.
        known: the addresses there are.
    """

    def link(match: re.Match[str]) -> str:
        mark, label, target, anchor = match.groups()
        found = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        to = OUTSIDE.get(found, found.removeprefix("docs/"))
        if to not in known:
            return label
        return f"{mark}[{label}]({posixpath.relpath(to, posixpath.dirname(address))}{anchor or ''})"

    return _LINK.sub(link, text)
