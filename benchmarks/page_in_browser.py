"""Measures the page of `loramerge ui` in Chromium: pictures behind a slider, and 5,000 cards.

    python -m benchmarks.page_in_browser [--files 5000] [-n 20]

`--files` small adapters are written and indexed. Times are taken inside of the page: from the last
movement of a slider to the picture that belongs to it, from the start of loading to the first cards,
from a letter in the search to its cards. Then the wall is scrolled to its end and back. It needs
Chromium and Playwright, see tests/builders/chromium.py, and the extras `ui` and `train`.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measure import Check, Sample, environment, options, report, run

from tests.builders.chromium import launched
from tests.page.browser import opened, served

STEM = "lora_unet_{}_blocks_{}_attentions_0_transformer_blocks_0_attn1_to_{}"
STEMS = [STEM.format(a, b, c) for a, b in (("down", 0), ("up", 3)) for c in "qkv"]
WORDS = ["ink", "watercolour", "night", "pastel", "film", "neon", "clay", "paper", "city", "sea"]
RESTED = """() => new Promise((done) => {
  const node = document.querySelector(".preview");
  const start = performance.now();
  const look = () => {
    if (node.dataset.state !== "drawn") return;
    watch.disconnect();
    done(performance.now() - start);
  };
  const watch = new MutationObserver(look);
  watch.observe(node, {attributes: true});
  look();
})"""
FOUND = """(words) => new Promise((done) => {
  const box = document.querySelector("input.search");
  const wall = document.querySelector(".wall-place");
  const start = performance.now();
  const watch = new MutationObserver(() => {
    const names = [...wall.querySelectorAll(".card h3")].map((one) => one.textContent);
    if (names.length && names.every((one) => one.includes(words))) {
      watch.disconnect();
      done(performance.now() - start);
    }
  });
  watch.observe(wall, {childList: true, subtree: true});
  box.value = words;
  box.dispatchEvent(new InputEvent("input", {bubbles: true}));
})"""
FIRST = """() => new Promise((done) => {
  const look = () => document.querySelector(".card") && (watch.disconnect(), done(performance.now()));
  const watch = new MutationObserver(look);
  watch.observe(document.body, {childList: true, subtree: true});
  look();
})"""


def write(folder: Path, count: int) -> None:
    """Writes small adapters for SD1.5, each with other numbers."""
    folder.mkdir(parents=True)
    for n in range(count):
        random = np.random.default_rng(n)
        header: dict[str, object] = {"__metadata__": {"ss_output_name": f"style {n}"}}
        parts: list[bytes] = []
        end = 0
        for stem in STEMS:
            for role, shape in (("lora_down", (2, 320)), ("lora_up", (320, 2))):
                data = random.standard_normal(shape).astype(np.float16).tobytes()
                start, end = end, end + len(data)
                header[f"{stem}.{role}.weight"] = {
                    "dtype": "F16", "shape": shape, "data_offsets": [start, end],
                }  # fmt: skip
                parts.append(data)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        name = f"{WORDS[n % len(WORDS)]}-{n:04d}"
        (folder / f"{name}.safetensors").write_bytes(
            len(text).to_bytes(8, "little") + text + b"".join(parts)
        )


def pictures(browser: Any, address: str, rounds: int) -> Iterator[float]:
    """Yields the seconds from a slider's rest to its picture, of drags of a third of a second."""
    with opened(browser, address, "mix?add=zuzu&add=polka") as tab:
        tab.drawn()
        tab.view.wait_for_timeout(2000)
        box = tab.view.get_by_role("slider", name="Weight of zuzu", exact=True).bounding_box()
        y = box["y"] + box["height"] / 2
        tab.view.mouse.move(box["x"] + box["width"] * 0.53, y)
        tab.view.mouse.down()
        for share in np.random.default_rng(0).uniform(0.05, 0.95, rounds):
            for part in range(20):
                tab.view.mouse.move(box["x"] + box["width"] * (0.5 + (share - 0.5) * part / 19), y)
                tab.view.wait_for_timeout(10)
            yield tab.view.evaluate(RESTED) / 1e3
            tab.view.wait_for_timeout(300)
        tab.view.mouse.up()


def heap(tab: Any) -> float:
    """Returns the megabytes that scripts hold after their garbage is collected."""
    session = tab.view.context.new_cdp_session(tab.view)
    session.send("HeapProfiler.collectGarbage")
    session.send("Performance.enable")
    found = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    return found["JSHeapUsedSize"] / 1e6


def wall(browser: Any, address: str, rounds: int) -> dict[str, Any]:
    """Returns the times of first cards and searches, and megabytes before and after scrolling."""
    first, search, memory = [], [], (0.0, 0.0)
    for n in range(rounds):
        with opened(browser, address, "library") as tab:
            first.append(tab.view.evaluate(FIRST) / 1e3)
            words = WORDS[n % len(WORDS)]
            search.append(tab.view.evaluate(FOUND, words) / 1e3)
            if n == rounds - 1:
                tab.view.get_by_role("searchbox").fill("")
                tab.view.wait_for_timeout(500)
                before = heap(tab)
                for share in [*np.linspace(0, 1, 60), *np.linspace(1, 0, 20)]:
                    tab.view.evaluate(
                        "(s) => scrollTo(0, s * document.documentElement.scrollHeight)",
                        float(share),
                    )
                    tab.view.wait_for_timeout(60)
                memory = (before, heap(tab))
    return {"first": first, "search": search, "memory": memory}


def main() -> None:
    parser = options("The page in Chromium.", 20)
    parser.add_argument("--files", type=int, default=5000)
    given = parser.parse_args()
    root = given.data.resolve() / "page"
    shutil.rmtree(root, ignore_errors=True)
    home, folder = root / "home", root / "work"
    write(folder / "loras", given.files)
    try:
        env = environment(home)
        scan = run([given.python, "-m", "loramerge", "library", "scan", str(folder), "-q"], env)
        with served(folder, home) as address, launched() as browser:
            cards = wall(browser, address, given.rounds)
            drawn = list(pictures(browser, address, given.rounds))
        taken = {
            f"scan of {given.files} files": [scan],
            "first cards": [Sample(one, None, None) for one in cards["first"]],
            "search": [Sample(one, None, None) for one in cards["search"]],
            "picture after the slider rests": [Sample(one, None, None) for one in drawn],
        }
        before, after = cards["memory"]
        checks = [
            Check("picture after the slider rests, median s", statistics.median(drawn), 0.5),
            Check("first cards, median s", statistics.median(cards["first"]), 1.0),
            Check("search, median s", statistics.median(cards["search"]), 0.1),
            Check("memory of scripts after scrolling, over before", after / before, 1.5),
        ]
        report("The page in Chromium", taken, checks, given.json)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
