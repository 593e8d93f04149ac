"""Write docs/proving-ground-language.md: the text of page.md, with tables and plots."""

from __future__ import annotations

from pathlib import Path

from benchmarks.languagebench import grounds
from benchmarks.languagebench.findings import findings
from benchmarks.proving import evidence, tables
from benchmarks.proving.keeping import figures
from benchmarks.proving.page import DOCS, part, write
from benchmarks.proving.scores import interval
from benchmarks.proving.tables import Figures

__all__ = ["COUNTS", "PAGE", "SCALES", "TEXT", "tables_of", "write_page"]

TEXT = Path(__file__).resolve().with_name("page.md")
SHAPES, PAGE, PLOTS = (
    DOCS / "proving-ground.md",
    DOCS / "proving-ground-language.md",
    DOCS / "proving-ground",
)
COUNTS = (2, 4, 8)
SCALES = ("literal", "norm-match")
_ANSWERS = {"right": "right answers", "least right": "least right", "drift": "drift, %"}


def tables_of(rows: Figures, shapes: str) -> dict[str, list[str]]:
    """Return the lines of every table of the page by its mark.

    Args:
        shapes: the page of the other ground.
    """
    operators = tables.operator_table(rows, COUNTS)
    defaults = evidence.default_table(rows, COUNTS)
    orders = evidence.order_table(rows, 8)
    return {
        "language findings": findings(rows, COUNTS),
        "language operators": operators,
        "language answers": tables.score_table(rows, 4, _ANSWERS),
        "language scales 4": tables.scale_table(rows, 4, SCALES),
        "language scales 8": tables.scale_table(rows, 8, SCALES),
        "language defaults": defaults,
        "both operators": grounds.both_table(part(shapes, "shapes operators"), operators, COUNTS),
        "both defaults": grounds.common_defaults(part(shapes, "shapes defaults"), defaults),
        "both orders": grounds.orders_table(part(shapes, "shapes orders"), orders),
        "language resize one": tables.resize_table(rows, "one"),
        "language resize mix": tables.resize_table(rows, "mix"),
        "language checkpoints": checkpoint_table(rows),
    }


def checkpoint_table(rows: Figures) -> list[str]:
    """Return the lines of a table: operators on checkpoints, and on the adapters that were baked."""
    scores = ("mean", "worst", "drift")
    found: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        if row["table"] == "checkpoints":
            found.setdefault(row["method"], []).append(row)
    body = [
        [
            f"`{method}`",
            *(
                str(interval([one[f"{of}{score}"] for one in ones]))
                for score in scores
                for of in ("", "mix ")
            ),
        ]
        for method, ones in found.items()
    ]
    heads = [f"{score}: {of}" for score in scores for of in ("`merge`", "`mix`")]
    return tables.table(["method", *heads], body)


def write_page(folder: Path) -> None:
    """Write the page and draw its plots."""
    from benchmarks.proving import plots

    rows = figures(folder)
    write(PAGE, TEXT.read_text("utf-8"), tables_of(rows, SHAPES.read_text("utf-8")))
    PLOTS.mkdir(exist_ok=True)
    plots.operators_plot(rows, COUNTS, PLOTS / "language-operators.svg")
    plots.tradeoff_plot(rows, 8, PLOTS / "language-tradeoff.svg", "drift: perplexity of English, %")
    plots.resize_plot(rows, PLOTS / "language-resize.svg")
