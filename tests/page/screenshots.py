"""Take the pictures of the page: `python -m tests.page.screenshots docs`.

It needs Chromium, see `tests.builders.chromium`, the extra `train`, and about a minute.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from loramerge.cli.main import main
from loramerge.steps.references import references
from loramerge.tiny.adapters import zuzu_pictures
from loramerge.tiny.folders import write_pictures
from loramerge.verbs.preview import Preview, compute_preview
from tests.builders.chromium import launched
from tests.page.browser import Opened, opened, served

COLOURS = 200
WIDE, TALL, PHONE = (1280, 880), (1280, 960), (390, 844)
PROMPT = {
    "prompt": ("a happy zuzu on a purple background",),
    "steps": 12,
    "guidance": 2.0,
    "seed": (3,),
}
LIBRARY = {
    "zuzu-small": ("resize", "zuzu", "--rank", "4"),
    "zuzu-tiny": ("resize", "zuzu", "--rank", "2"),
    "polka-small": ("resize", "polka", "--rank", "4"),
    "dotted-zuzu": ("mix", "zuzu:0.8", "polka:0.9"),
    "quiet-zuzu": ("mix", "zuzu:0.5"),
    "loud-zuzu": ("mix", "zuzu:1.2"),
    "zuzu-with-ties": ("mix", "zuzu", "polka", "--method", "ties"),
    "zuzu-slerp": ("mix", "zuzu:0.7", "polka:0.3", "--method", "slerp"),
}  # name → the command that makes it


def library(folder: Path) -> None:
    """Write adapters, each with a picture beside it, and images to train on."""
    os.chdir(folder)
    for name, words in LIBRARY.items():
        path = f"loras/{name}.safetensors"
        assert main([*words, "-o", path, "-q"]) == 0
        asked = Preview(base=("tiny",), adapters=references(path), no_base=True, **PROMPT)
        image = compute_preview(asked).images[0][0]
        image.resize((384, 384), Image.Resampling.NEAREST).save(f"loras/{name}.preview.png")
    write_pictures("pictures", zuzu_pictures(0, regularisation=0))


def mix(tab: Opened) -> None:
    """Wait for the picture and the figures, and open the comparison."""
    tab.drawn()
    tab.view.locator(".plan .relations").wait_for()
    tab.view.get_by_role("button", name="Compare with A", exact=True).click()
    tab.view.wait_for_timeout(300)


def blocks(tab: Opened) -> None:
    """Open the finer weights of the first adapter, and draw a curve."""
    tab.drawn()
    tab.view.get_by_role("button", name="Finer weights of zuzu").click()
    tab.view.get_by_role("radio", name="Curve").click()
    box = tab.view.locator("svg.curve").bounding_box()
    tab.view.mouse.move(box["x"] + 8, box["y"] + box["height"] * 0.8)
    tab.view.mouse.down()
    for share, level in ((0.25, 0.65), (0.5, 0.3), (0.75, 0.25), (0.99, 0.2)):
        tab.view.mouse.move(
            box["x"] + box["width"] * share, box["y"] + box["height"] * level, steps=4
        )
    tab.view.mouse.up()
    tab.drawn()
    tab.view.wait_for_timeout(800)


def resize(tab: Opened) -> None:
    """Wait for the curve and what is kept at its handle."""
    tab.view.locator(".handle").wait_for()
    tab.view.locator(".plan[data-state=shown] .meter").first.wait_for()


def training(tab: Opened) -> None:
    """Train for some steps, and show the run."""
    fields = {"Images": "pictures", "Trigger": "zuzu", "Steps": "120", "Learning rate": "0.003"}
    for name, value in fields.items():
        tab.view.get_by_label(name).first.fill(value)
    tab.view.get_by_text("More settings").click()
    tab.view.get_by_label("Sample every").fill("40")
    tab.view.get_by_label("Save as").fill("trained.safetensors")
    tab.view.get_by_role("button", name="Start training").click()
    tab.view.locator(".watching .job[data-state=done]").wait_for(timeout=180_000)
    tab.view.locator(".samples img").wait_for()
    tab.view.evaluate("scrollTo(0, 0)")
    tab.view.wait_for_timeout(800)


def recipe(tab: Opened) -> None:
    """Show the graph of a recipe."""
    tab.view.get_by_role("button", name="Start from a small one").click()
    tab.view.locator(".graph").wait_for()


def report(tab: Opened) -> None:
    """Wait for the page of a report."""
    tab.view.locator(".report-frame").wait_for()
    tab.view.wait_for_timeout(1500)


def cards(tab: Opened) -> None:
    """Wait for the pictures of the cards."""
    tab.view.locator(".card img").first.wait_for()
    tab.view.wait_for_timeout(1200)


MIX = "mix?add=zuzu&add=polka"
SHOTS: dict[str, tuple[str, tuple[int, int], str, Callable[[Opened], None]]] = {
    "library": ("library", WIDE, "light", cards),
    "library-phone": ("library", PHONE, "dark", cards),
    "mix": (MIX, TALL, "light", mix),
    "mix-dark": (MIX, TALL, "dark", mix),
    "mix-phone": (MIX, PHONE, "light", mix),
    "mix-curve": (MIX, WIDE, "light", blocks),
    "resize": ("resize?file=zuzu", WIDE, "light", resize),
    "train": ("train", TALL, "dark", training),
    "recipe": ("recipes", (1280, 640), "light", recipe),
    "inspect": ("inspect?file=zuzu", TALL, "light", report),
}  # name → view, size, colours, what is waited for and done


def screenshots(target: Path, wanted: tuple[str, ...]) -> None:
    """Write the pictures, or only those of some names."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        home = Path(folder, "home")
        os.environ["LORAMERGE_HOME"] = str(home)
        work = Path(folder, "pictures-of-mine")
        work.mkdir()
        here = Path.cwd()
        library(work)
        os.chdir(here)
        address = stack.enter_context(served(work, home))
        browser = stack.enter_context(launched())
        for name, (route, size, scheme, prepare) in SHOTS.items():
            if wanted and name not in wanted:
                continue
            phone = {"is_mobile": True, "has_touch": True} if size == PHONE else {}
            with opened(browser, address, route, size=size, scheme=scheme, **phone) as tab:
                # where it runs is nobody's business, and other at each run
                tab.view.locator(".folder bdi").evaluate(
                    "(n) => { n.textContent = '~/pictures-of-mine' }"
                )
                prepare(tab)
                picture = Image.open(io.BytesIO(tab.view.screenshot()))
            reduced = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            reduced.save(target / f"ui-{name}.png", optimize=True)


if __name__ == "__main__":
    screenshots(Path(sys.argv[1]).absolute(), tuple(sys.argv[2:]))
