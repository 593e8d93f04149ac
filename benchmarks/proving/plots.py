"""The plots of the pages, as SVG. They need matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from benchmarks.proving.cases import operators
from benchmarks.proving.scores import interval
from benchmarks.proving.tables import Figures, values_of

__all__ = ["operators_plot", "resize_plot", "tradeoff_plot"]

mpl.use("Agg")
mpl.rcParams.update({"svg.hashsalt": "loramerge", "svg.fonttype": "none", "font.size": 8})

_BLUE, _ORANGE, _GREY = "#2563a8", "#d97706", "#9ca3af"
_LEAST = -0.6  # values below are drawn at the edge


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def operators_plot(rows: Figures, counts: Sequence[int], path: Path) -> None:
    """Draw the mean and the worst retention of every operator, with intervals, a panel for each n."""
    names = [one.name for one in operators()]
    figure, panels = plt.subplots(
        1, len(counts), figsize=(9, 5.6), sharey=True, layout="constrained"
    )
    for panel, count in zip(panels, counts, strict=True):
        for score, colour, mark in (("worst", _ORANGE, "v"), ("mean", _BLUE, "o")):
            points = [
                (place, interval(found))
                for place, name in enumerate(names)
                if (found := list(values_of(rows, name, count, score).values()))
            ]
            panel.errorbar(
                [max(one.mean, _LEAST) for _, one in points],
                [place for place, _ in points],
                xerr=[one.half if one.mean > _LEAST else 0.0 for _, one in points],
                color=colour,
                fmt=mark,
                markersize=4,
                linewidth=1,
                label=score,
            )
        best = list(values_of(rows, "linear", count, "mean").values())
        if best:
            panel.axvline(max(mean(best), _LEAST), color=_GREY, linewidth=0.8, linestyle=":")
        panel.axvline(0, color=_GREY, linewidth=0.8)
        panel.set(title=f"n = {count}", xlim=(_LEAST - 0.05, 1.1), xlabel="retention")
        panel.set_yticks(range(len(names)), names)
        panel.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    panels[-1].legend(loc="lower right", frameon=False)
    _save(figure, path)


def tradeoff_plot(rows: Figures, count: int, path: Path, drift: str) -> None:
    """Draw the retention of every operator against its drift.

    Args:
        drift: the label of that axis.
    """
    figure, panel = plt.subplots(figsize=(8, 5.6), layout="constrained")
    points = []
    for one in operators():
        kept, moved = (
            list(values_of(rows, one.name, count, s).values()) for s in ("mean", "drift")
        )
        if kept and mean(kept) > _LEAST:
            points.append((mean(kept), mean(moved), one.name))
            panel.plot(mean(moved), mean(kept), "o", color=_BLUE, markersize=4)
    low, high = panel.get_ylim()
    for place, (kept, moved, name) in enumerate(sorted(points)):
        height = low + (high - low) * (place + 0.5) / len(points)
        panel.annotate(
            name,
            (moved, kept),
            (1.02, height),
            textcoords=panel.get_yaxis_transform(),
            arrowprops={"arrowstyle": "-", "color": _GREY, "linewidth": 0.4},
            fontsize=7,
            va="center",
        )
    panel.set(
        xlim=(-0.3, None),
        xlabel=drift,
        xscale="symlog",
        ylabel="mean retention",
        title=f"n = {count}",
    )
    panel.grid(alpha=0.3)
    _save(figure, path)


def resize_plot(rows: Figures, path: Path) -> None:
    """Draw retention against size for every rule of resize: adapters alone, and the sum of all."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for panel, of, title in zip(
        panels, ("one", "mix"), ("each adapter alone", "the sum of all eight"), strict=True
    ):
        found: dict[str, dict[Any, list[dict[str, Any]]]] = {}
        for row in rows:
            if row["table"] == "resize" and row["of"] == of:
                found.setdefault(row["rule"], {}).setdefault(row["value"], []).append(row)
        colours = {rule: f"C{place}" for place, rule in enumerate(found)}
        for rule, points in found.items():
            sizes = [mean(one["size"] for one in ones) for ones in points.values()]
            for score, style in (("mean", "-o"), ("worst", ":v")):
                heights = [mean(one[score] for one in ones) for ones in points.values()]
                panel.plot(
                    sizes,
                    heights,
                    style,
                    markersize=3,
                    linewidth=1,
                    label=rule if score == "mean" else None,
                    color=colours[rule],
                )
        panel.set(title=title, xlabel="size, share of the original", ylabel="retention")
        panel.set_ylim(bottom=max(panel.get_ylim()[0], -0.6))
        panel.grid(alpha=0.3)
    figure.legend(
        *panels[1].get_legend_handles_labels(),
        loc="outside right center",
        frameon=False,
        title="rule\n(dotted: worst)",
    )
    _save(figure, path)
