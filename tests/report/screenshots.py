"""Take the pictures of docs/reports.md: `python -m tests.report.screenshots docs/reports`.

It needs Chromium, see `tests.builders.chromium`, and the adapters that come with loramerge.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image

from loramerge.cli.main import main
from tests.builders.chromium import launched

COMMANDS = {
    "inspect": ("inspect", "zuzu"),
    "diff": ("diff", "zuzu", "zuzu-r2.safetensors"),
    "compare": ("compare", "zuzu", "polka", "zuzu-r2.safetensors", "mixed.safetensors"),
    "mix": ("mix", "zuzu:0.8", "polka:0.5", "-o", "mixed.safetensors", "--force"),
}
SHOTS = {
    "inspect-light": ("inspect", (960, 1250), "light", "h1"),
    "inspect-dark": ("inspect", (960, 1000), "dark", "figure:nth-of-type(2)"),
    "inspect-phone": ("inspect", (390, 844), "dark", "figure:nth-of-type(2)"),
    "compare-light": ("compare", (960, 900), "light", "h1"),
    "mix-phone": ("mix", (390, 844), "light", "figure:nth-of-type(2)"),
    "diff-dark": ("diff", (960, 900), "dark", "h1"),
}  # name → page, size, colours, what is at the top
COLOURS = 48


def pages(folder: Path) -> None:
    """Write the pages into a folder."""
    os.chdir(folder)
    main(["mix", "zuzu:0.8", "polka:0.5", "-o", "mixed.safetensors", "-q"])
    main(["resize", "zuzu", "--rank", "2", "-o", "zuzu-r2.safetensors", "-q"])
    for name, words in COMMANDS.items():
        assert main([*words, "--html", f"{name}.html", "-q"]) == 0


def screenshots(target: Path) -> None:
    """Write the pictures."""
    with tempfile.TemporaryDirectory() as folder, launched() as browser:
        pages(Path(folder))
        for name, (page, (width, height), scheme, top) in SHOTS.items():
            view = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme=scheme
            )
            view.goto(Path(folder, f"{page}.html").as_uri())
            view.evaluate(f"document.querySelector({top!r}).scrollIntoView()")
            picture = Image.open(io.BytesIO(view.screenshot()))
            reduced = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            reduced.save(target / f"{name}.png", optimize=True)


if __name__ == "__main__":
    screenshots(Path(sys.argv[1]).resolve())
