"""Pages in a real browser: no console message, no request, no script, and they fit a phone.

Chromium is taken from the path, or from $LORAMERGE_CHROMIUM; without one these tests skip.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("jinja2")
sync_api = pytest.importorskip("playwright.sync_api")

from loramerge.report.page import page  # noqa: E402
from tests.builders.world import rewrite  # noqa: E402
from tests.report.test_pages import EVIL, everything  # noqa: E402

_NAMES = ("chromium", "chromium-browser", "google-chrome")
FOUND = [os.environ.get("LORAMERGE_CHROMIUM"), *map(shutil.which, _NAMES)]
CHROMIUM = next((path for path in FOUND if path), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.xdist_group("browser"),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
SIZES = {"desktop": (1000, 800), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with sync_api.sync_playwright() as tool:
        found = tool.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield found
        finally:
            found.close()


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


# the least contrast of all elements that hold text, colours drawn to a canvas to read them
CONTRASTS = """() => {
  const pen = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const light = colour => {
    pen.clearRect(0, 0, 1, 1); pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
    const one = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return a ? 0.2126 * one(r) + 0.7152 * one(g) + 0.0722 * one(b) : null;
  };
  const behind = node => {
    for (; node; node = node.parentElement) {
      const found = light(getComputedStyle(node).backgroundColor);
      if (found !== null) return found;
    }
    return 1;
  };
  let least = 21;
  for (const node of document.body.querySelectorAll('*')) {
    const own = [...node.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || node.namespaceURI.endsWith('svg')) continue;
    const [a, b] = [light(getComputedStyle(node).color), behind(node)].sort((x, y) => y - x);
    least = Math.min(least, (a + 0.05) / (b + 0.05));
  }
  return least;
}"""


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
