"""Chromium for tests and screenshots: taken from the path, or from $LORAMERGE_CHROMIUM."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

__all__ = ["CONTRASTS", "IN_CHROMIUM", "launched"]

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FOUND = [os.environ.get("LORAMERGE_CHROMIUM"), *map(shutil.which, _NAMES)]
_CHROMIUM = next((path for path in _FOUND if path), None)
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

# marks of tests that need it: without one they skip, and one process runs them all
IN_CHROMIUM = [
    pytest.mark.skipif(_CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.xdist_group("browser"),
]


@contextmanager
def launched() -> Iterator[Any]:
    """Start Chromium; yield Playwright's browser, and close it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        found = tool.chromium.launch(executable_path=_CHROMIUM, args=list(_FLAGS))
        try:
            yield found
        finally:
            found.close()


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
