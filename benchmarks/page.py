"""Measures the page of `loramerge ui`: a large library, and what is computed while a slider moves.

    python benchmarks/page.py [--files 5000] [-n 20]

`--files` small adapters for SD1.5 (16 modules, 84 KB each), a third of them with a sidecar of Civitai
and a tenth with a picture, are indexed by `loramerge library scan`. Then a server is started and asked
over HTTP, as the page does: the first cards, searches, 200 requests (its resident memory before and
after), plans and previews of the two adapters that come with loramerge, each with another weight.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from library import POOL, SHAPES, write
from measure import Check, Sample, environment, median, options, report, run

RANK, ALPHA, MODULES = 4, 4.0, 16
COLOURS = (
    "red",
    "blue",
    "green",
    "black",
    "white",
    "silver",
    "golden",
    "violet",
    "orange",
    "amber",
)
THINGS = (
    "cat", "hat", "coat", "river", "tower", "forest", "castle", "dragon", "engine", "garden", "lantern",
    "mirror",
)  # fmt: skip
REQUESTS = 200


def generated(seed: int) -> dict[str, np.ndarray]:
    """Returns the tensors of a small adapter."""
    random = np.random.default_rng(seed)
    found = {}
    for stem, (out, into) in sorted(SHAPES.items())[:MODULES]:
        found[f"{stem}.alpha"] = np.array(ALPHA, np.float16)
        for role, shape in (("lora_down", (RANK, into)), ("lora_up", (out, RANK))):
            first = int(random.integers(0, POOL.size - out * into))
            found[f"{stem}.{role}.weight"] = POOL[first : first + np.prod(shape)].reshape(shape)
    return found


def make_library(folder: Path, count: int) -> None:
    """Writes adapters, sidecars and pictures."""
    from PIL import Image

    for n in range(count):
        place = folder / f"shelf{n % 20:02}"
        place.mkdir(parents=True, exist_ok=True)
        words = f"{COLOURS[n % 10]} {THINGS[n % 12]}"
        path = place / f"{words.replace(' ', '_')}_{n}.safetensors"
        write(path, generated(n), f"{words} {n}")
        if n % 3 == 0:
            about = {"model": {"name": words}, "trainedWords": [f"trig{n}"], "baseModel": "SD 1.5"}
            path.with_suffix(".civitai.info").write_text(json.dumps(about))
        if n % 10 == 0:
            colour = tuple(int(c) for c in np.random.default_rng(n).integers(0, 255, 3))
            Image.new("RGB", (512, 768), colour).save(path.with_suffix(".png"))


class Page:
    """A running server.

    Args:
        address: what `loramerge ui` printed.
    """

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process = process
        self._root, _, self._token = address.partition("/?token=")

    def ask(self, path: str, content: Any = None) -> bytes:
        """Returns the answer to a request; with a content it is posted."""
        data = None if content is None else json.dumps(content).encode()
        headers = {"X-Loramerge-Token": self._token}
        with urllib.request.urlopen(
            urllib.request.Request(self._root + path, data, headers)
        ) as one:
            found: bytes = one.read()
            return found

    def memory(self) -> float | None:
        """Returns the resident memory of the server in MB, None where it is not known."""
        try:
            text = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return None
        (line,) = [line for line in text.splitlines() if line.startswith("VmRSS")]
        return int(line.split()[1]) / 1000


@contextmanager
def serving(folder: Path, python: str, env: dict[str, str]) -> Iterator[Page]:
    """Starts a server, and ends it."""
    command = [python, "-m", "loramerge", "ui", "--no-browser"]
    process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = next((word for word in process.stdout.readline().split() if "token=" in word), "")
    try:
        yield Page(process, address)
    finally:
        process.terminate()
        process.wait()


def timed(work: Callable[[], object]) -> Sample:
    """Returns what a call took."""
    start = time.perf_counter()
    work()
    return Sample(time.perf_counter() - start, None, None)


def first_cards(folder: Path, python: str, env: dict[str, str]) -> tuple[Sample, Sample]:
    """Returns the time from the start of a server to its first cards, and of these that of the cards."""
    start = time.perf_counter()
    with serving(folder, python, env) as page:
        cards = timed(lambda: page.ask("/api/library?limit=60"))
        return Sample(time.perf_counter() - start, None, None), cards


def searches(page: Page, rounds: int) -> list[Sample]:
    """Returns what searches took, each for other words."""
    words = [
        f"{COLOURS[n % 10][: 2 + n % 5]}+{THINGS[n % 12]}" if n % 2 else THINGS[n % 12][:1]
        for n in range(rounds)
    ]
    return [timed(lambda text=text: page.ask(f"/api/library?words={text}")) for text in words]


def several(page: Page) -> None:
    """Asks for many cards."""
    for n in range(REQUESTS):
        page.ask(f"/api/library?words={THINGS[n % 12]}&offset={n % 7 * 60}")


def moving(page: Page, kind: str, rounds: int, further: dict[str, Any]) -> list[Sample]:
    """Returns what answers took while a weight changes, the first one apart."""

    def asked(weight: float) -> dict[str, Any]:
        values = {"adapters": [f"zuzu:{weight:.3f}", "polka:0.5"], **further}
        return {"kind": kind, "verb": "mix", "values": values, "latest": kind, "relations": True}

    page.ask("/api/live", asked(0.01))
    weights = [0.2 + n / rounds for n in range(rounds)]
    return [timed(lambda w=w: page.ask("/api/live", asked(w))) for w in weights]


def main() -> None:
    """Makes the library, measures and reports."""
    parser = options("The page of loramerge ui.", 20)
    parser.add_argument("--files", type=int, default=5000)
    given = parser.parse_args()
    root = given.data.resolve() / "page"
    shutil.rmtree(root, ignore_errors=True)
    folder, current, home = root / "loras", root / "here", root / "home"
    for one in (folder, current, home):
        one.mkdir(parents=True)
    env = environment(home)
    try:
        make_library(folder, given.files)
        library = [given.python, "-m", "loramerge", "library"]
        run([*library, "add", str(folder)], env)
        samples = {f"scan of {given.files} files": [run([*library, "scan", "-q"], env)]}
        both = [first_cards(current, given.python, env) for _ in range(5)]
        samples["start to first cards"] = [whole for whole, _ in both]
        samples["first cards"] = [cards for _, cards in both]
        with serving(current, given.python, env) as page:
            page.ask("/api/library")
            samples["search"] = searches(page, given.rounds)
            sorts = ("size", "rank", "rating", "newest", "problems")
            samples["sorted"] = [
                timed(lambda n=n: page.ask(f"/api/library?sort={sorts[n % 5]}&offset={60 * n}"))
                for n in range(given.rounds)
            ]
            several(page)  # threads that answer, and what is imported only once
            before = page.memory()
            several(page)
            after = page.memory()
            samples["plan with relations"] = moving(page, "plan", given.rounds, {})
            drawing = {"base": ["tiny"], "together": True, "no_base": True, "steps": 12}
            samples["preview, 12 steps of tiny"] = moving(page, "preview", given.rounds, drawing)
        growth = None if before is None or after is None else after - before
        checks = [
            Check("first cards, s", median(samples["first cards"]), 1.0),
            Check("start to first cards, s", median(samples["start to first cards"]), 2.0),
            Check("search, s", median(samples["search"]), 0.1),
            Check("slowest search, s", max(s.wall for s in samples["search"]), 0.2),
            Check("another order, s", median(samples["sorted"]), 0.1),
            Check(f"MB that {REQUESTS} requests add to the server", growth, 5),
            Check("MB of the server", after, 150),
            Check("plan with relations, s", median(samples["plan with relations"]), 0.1),
            Check("preview, s", median(samples["preview, 12 steps of tiny"]), 0.5),
        ]
        report("The page", samples, checks, given.json)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
