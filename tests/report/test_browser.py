"""Pages in a real browser: no console message, no request, no script, and they fit a phone.

Chromium is taken from the path, or from $LORAMERGE_CHROMIUM; without one these tests skip.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("playwright.sync_api")

from loramerge.report.page import page
from tests.builders.chromium import CONTRASTS, IN_CHROMIUM, launched
from tests.builders.world import rewrite
from tests.report.test_pages import EVIL, everything

pytestmark = IN_CHROMIUM
SIZES = {"desktop": (1000, 800), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with launched() as found:
        yield found


def seen(browser, path, size="desktop", scheme="light"):
    """Open a page; return what it said and asked for, and the open page."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    view, said, asked = context.new_page(), [], []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
    view.on("request", lambda request: asked.append(request.url))
    view.goto(path.resolve().as_uri())
    return view, said, [url for url in asked if not url.startswith(("file:", "data:"))]


def test_pages_say_nothing_ask_nothing_and_run_nothing(run, browser):
    def edit(arrays, metadata):
        metadata["modelspec.description"] = EVIL
        metadata["ss_tag_frequency"] = json.dumps({"10_x": {EVIL: 3}})

    rewrite(run.folder / "a.safetensors", run.folder / "a.safetensors", edit)
    run.ok("inspect", "a", "--html", "inspect.html")
    Path("every.html").write_bytes(page(everything(EVIL)))
    for name in ("inspect.html", "every.html"):
        for size in SIZES:
            for scheme in ("light", "dark"):
                view, said, asked = seen(browser, Path(name), size, scheme)
                said = [text for text in said if "ERR_INVALID" not in text]  # our broken PNG
                assert (said, asked) == ([], []), (name, size, scheme)
                assert view.evaluate("document.scripts.length") == 0
                wide = view.evaluate("document.documentElement.scrollWidth")
                assert wide <= SIZES[size][0], (name, size)
                view.context.close()


def test_light_and_dark_are_legible(run, browser):
    """The contrast of texts with what is behind them is at least 4.5, as WCAG 2 (AA) asks."""
    run.ok("compare", "a", "b", "--html", "x.html")
    for scheme in ("light", "dark"):
        view, _, _ = seen(browser, Path("x.html"), scheme=scheme)
        assert view.evaluate(CONTRASTS) >= 4.5, scheme
    papers = set()
    for scheme in ("light", "dark"):
        view, _, _ = seen(browser, Path("x.html"), scheme=scheme)
        papers.add(view.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(papers) == 2


def test_a_page_can_be_used_by_keyboard(run, browser):
    run.ok("inspect", "a", "--html", "x.html")
    view, _, _ = seen(browser, Path("x.html"))
    view.keyboard.press("Tab")
    assert view.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(40):
        view.keyboard.press("Tab")
        reached.add(view.evaluate("document.activeElement.tagName"))
    assert {"A", "SUMMARY", "DIV"} <= reached  # links, tables to open, regions to scroll
    view.locator("summary").first.focus()
    view.keyboard.press("Enter")
    assert view.locator("details[open]").count() == 1


def test_a_script_would_be_seen_and_is_stopped(run, browser):
    """A page with a script in it, had we not escaped one: the policy stops it, and the test sees it."""
    text = page(everything("x")).decode()
    bad = text.replace("<main", "<script>document.title = 'ran'</script><img src=x.png><main")
    Path("bad.html").write_text(bad, "utf-8")
    loose = bad.replace("Content-Security-Policy", "X-Nothing")
    Path("loose.html").write_text(loose, "utf-8")
    view, said, _ = seen(browser, Path("bad.html"))
    assert view.title() == "x" and any("Content Security Policy" in text for text in said)
    view, _, _ = seen(browser, Path("loose.html"))
    assert view.title() == "ran"
