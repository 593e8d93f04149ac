"""The site builds without a warning, and its pages load nothing from another host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from threading import Thread

import pytest

from tests.builders.chromium import IN_CHROMIUM, launched

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = "docs/site/mkdocs.yml"
# tags whose attribute makes a browser load something; `<link rel=…>` that only names a page does not
LOADS = {
    "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src",
    "embed": "src", "object": "data", "input": "src",
}  # fmt: skip
NAMES = {"canonical", "prev", "next", "alternate", "license", "author"}
_STYLE = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])((?:https?:)?//[^'\")\s]+)")


def external(text: str) -> list[str]:
    """Return the addresses on other hosts that a page loads."""
    found = _STYLE.findall(text)

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            given = dict(attributes)
            wanted = [given.get(LOADS.get(tag, ""))]
            if tag == "link" and not set((given.get("rel") or "").split()) & NAMES:
                wanted.append(given.get("href"))
            wanted += re.findall(r"\S+(?=[\s,]|$)", given.get("srcset") or "")
            found.extend(one for one in wanted if one and re.match(r"(?:https?:)?//", one))

    Reader().feed(text)
    return found


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://example.org/a.js"></script>',
        '<link rel="stylesheet" href="//example.org/a.css">',
        '<link rel="preconnect" href="https://example.org">',
        '<img src="http://example.org/a.png">',
        '<img srcset="https://example.org/a.png 2x">',
        "<style>@font-face{src:url(https://example.org/a.woff)}</style>",
        '<style>@import "https://example.org/a.css";</style>',
    ],
)
def test_what_loads_from_another_host_is_found(page):
    assert len(external(page)) == 1


def test_a_link_to_another_host_loads_nothing():
    assert not external(
        '<a href="https://example.org">a</a><link rel="canonical" href="https://a.b">'
    )
    assert not external('<img src="a.png"><script src="../a.js"></script>')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("material", reason="needs pip install 'loramerge[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", SETTINGS]
    done = subprocess.run(
        [*command, "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},  # an advertisement of another program
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip()
    return folder


def test_pages_load_nothing_from_another_host(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in (*pages, *site.rglob("*.css")):
        assert external(page.read_text("utf-8")) == [], page.name


def test_every_document_is_a_page_and_every_picture_is_there(site):
    documents = [p.relative_to(ROOT / "docs") for p in (ROOT / "docs").rglob("*.md")]
    for document in documents:
        assert (site / document.with_suffix(".html")).is_file(), document
    for page in site.rglob("*.html"):
        for picture in re.findall(r'<img[^>]+src="([^"]+)"', page.read_text("utf-8")):
            assert (page.parent / picture).is_file(), (page.name, picture)


def test_a_document_that_is_not_named_gets_a_place(tmp_path):
    config = pytest.importorskip("mkdocs.config.defaults").MkDocsConfig()
    spec = spec_from_file_location("pages", ROOT / "docs" / "site" / "pages.py")
    assert spec and spec.loader
    pages = module_from_spec(spec)
    spec.loader.exec_module(pages)
    for name in ("a.md", "new.md"):
        (tmp_path / name).write_text("# A\n", "utf-8")
    config.docs_dir, config.nav = str(tmp_path), [{"Start": [{"A": "a.md"}]}, {"Reference": []}]
    assert pages.on_config(config).nav[1] == {"Reference": ["new.md"]}


def test_links_between_documents_lead_to_pages(site):
    """Those that leave docs/ too: what has a page is linked, and source files are only named."""
    start = (site / "index.html").read_text("utf-8")
    assert 'href="ja/index.html"' in start and 'href="guides/first-steps.html"' in start
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not re.search(r'href="(?!https?:)[^"]*\.(md|py|yaml|toml)["#]', text), page.name
    assert 'href="measurements.html#ranks-at-equal-size"' in (site / "resizing.html").read_text(
        "utf-8"
    )


def test_the_search_knows_the_guides(site):
    index = (site / "search" / "search_index.json").read_text("utf-8")
    assert "guides/two-loras.html" in index and "ja/first-guide.html" in index


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.mark.long_tail
@IN_CHROMIUM[0]
@IN_CHROMIUM[1]
def test_a_browser_asks_no_other_host_and_finds_words(site):
    pytest.importorskip("playwright.sync_api")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    start = f"http://127.0.0.1:{server.server_port}/"
    asked, said = [], []
    with launched() as browser:
        view = browser.new_page()
        view.on("request", lambda request: asked.append(request.url))
        view.on("console", lambda message: said.append(message.text))
        view.on("pageerror", lambda error: said.append(str(error)))
        for page in ("index", "faq", "guides/two-loras", "algebra"):
            view.goto(f"{start}{page}.html")
            for words in ("black images", "焼き込み") if page == "faq" else ():
                view.click("input.md-search__input")
                view.fill("input.md-search__input", words)
                view.dispatch_event("input.md-search__input", "keyup")
                view.wait_for_selector(".md-search-result__item")
                view.fill("input.md-search__input", "")
    server.shutdown()
    server.server_close()
    assert (
        len(asked) > 20
        and [url for url in asked if not url.startswith((start, "data:", "blob:"))] == []
    )
    assert said == []
