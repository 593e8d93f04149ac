"""Write docs/proving-ground.md: the text of page.md, with the tables between its marks, and plots."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.shapebench import evidence, tables
from benchmarks.shapebench.cases import VARIED
from benchmarks.shapebench.tables import Figures
from loramerge.algebra.scale import SCALES

__all__ = ["COUNTS", "PAGE", "TEXT", "figures", "fill", "tables_of", "write_page"]

TEXT = Path(__file__).resolve().with_name("page.md")
DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, PLOTS = DOCS / "proving-ground.md", DOCS / "proving-ground"
COUNTS = (2, 4, 8)


def figures(folder: Path) -> Figures:
    """Return all figures that a folder keeps, each with its seed."""
    found = []
    for path in sorted(folder.glob("figures-*.jsonl")):
        seed = int(path.stem.partition("-")[2])
        found += [json.loads(line) | {"seed": seed} for line in path.read_text().splitlines()]
    return found


def fill(text: str, name: str, lines: Sequence[str]) -> str:
    """Return a text with the part between `<!-- name -->` and `<!-- end -->` replaced.

    Raises:
        ValueError: if it has no such part.
    """
    start, end = f"<!-- {name} -->", "<!-- end -->"
    found = re.search(f"{re.escape(start)}\n.*?{re.escape(end)}", text, re.DOTALL)
    if not found:
        raise ValueError(f"the page has no part {name!r}")
    return text[: found.start()] + "\n".join((start, *lines, end)) + text[found.end() :]


def tables_of(rows: Figures) -> dict[str, list[str]]:
    """Return the lines of every table of the page by its mark."""
    return {
        "shapes operators": tables.operator_table(rows, COUNTS),
        "shapes pictures": tables.picture_table(rows, 4),
        "shapes scales 4": tables.scale_table(rows, 4, SCALES),
        "shapes scales 8": tables.scale_table(rows, 8, SCALES),
        "shapes parameters": tables.parameter_table(rows, VARIED),
        "shapes defaults": evidence.default_table(rows, COUNTS),
        "shapes orders": evidence.order_table(rows, 8),
        "shapes resize one": tables.resize_table(rows, "one"),
        "shapes resize mix": tables.resize_table(rows, "mix"),
    }


def write_page(folder: Path) -> None:
    """Write the page and draw its plots."""
    from benchmarks.shapebench import plots

    rows, text = figures(folder), TEXT.read_text("utf-8")
    for name, lines in tables_of(rows).items():
        text = fill(text, name, lines)
    PAGE.write_text(text, "utf-8")
    PLOTS.mkdir(exist_ok=True)
    plots.operators_plot(rows, COUNTS, PLOTS / "operators.svg")
    plots.tradeoff_plot(rows, 8, PLOTS / "tradeoff.svg")
    plots.resize_plot(rows, PLOTS / "resize.svg")
