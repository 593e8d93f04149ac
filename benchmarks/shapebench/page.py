"""Write docs/proving-ground.md: the text of page.md, with the tables between its marks, and plots."""

from __future__ import annotations

from pathlib import Path

from benchmarks.proving import evidence, tables
from benchmarks.proving.cases import VARIED
from benchmarks.proving.keeping import figures
from benchmarks.proving.page import DOCS, write
from benchmarks.proving.tables import Figures
from loramerge.algebra.scale import SCALES

__all__ = ["COUNTS", "PAGE", "PICTURE_SCORES", "TEXT", "tables_of", "write_page"]

TEXT = Path(__file__).resolve().with_name("page.md")
PAGE, PLOTS = DOCS / "proving-ground.md", DOCS / "proving-ground"
COUNTS = (2, 4, 8)
PICTURE_SCORES = {
    "shown": "shown",
    "least shown": "least shown",
    "prompts": "ordinary prompts",
    "drift": "drift, %",
    "together": "two at once",
}


def tables_of(rows: Figures) -> dict[str, list[str]]:
    """Return the lines of every table of the page by its mark."""
    return {
        "shapes operators": tables.operator_table(rows, COUNTS),
        "shapes pictures": tables.score_table(rows, 4, PICTURE_SCORES),
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
    from benchmarks.proving import plots

    rows = figures(folder)
    write(PAGE, TEXT.read_text("utf-8"), tables_of(rows))
    PLOTS.mkdir(exist_ok=True)
    plots.operators_plot(rows, COUNTS, PLOTS / "operators.svg")
    drift = "drift of ordinary pictures, % of their error"
    plots.tradeoff_plot(rows, 8, PLOTS / "tradeoff.svg", drift)
    plots.resize_plot(rows, PLOTS / "resize.svg")
