"""Plots: three formats, the same bytes again, names of any letters, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from loramerge.errors import UsageError
from loramerge.report.plot import plot
from tests.report.test_pages import COMMANDS, everything
from tests.tail import tail

HEADS = {".png": b"\x89PNG\r\n", ".svg": b"<?xml", ".pdf": b"%PDF-"}


@pytest.mark.parametrize("suffix", [".svg", tail(".png"), tail(".pdf")])
def test_the_same_figures_give_the_same_bytes(suffix):
    figures = everything("$x_1$ <b> 猫 \x1b").figures()[:3]
    first = plot(figures, suffix)
    assert first.startswith(HEADS[suffix]) and plot(figures, suffix) == first
    assert b"loramerge" in first[: 1 << 16]
    for word in (b"CreationDate", b"dc:date", b"site-packages", b"Matplotlib v"):
        assert word not in first


def test_other_figures_give_other_bytes():
    one, two = (everything(word).figures()[:1] for word in ("x", "y"))
    assert plot(one, ".svg") != plot(two, ".svg")


def test_a_result_without_figures_is_not_plotted():
    with pytest.raises(UsageError, match="no figures"):
        plot([], ".png")


@pytest.mark.parametrize(
    ("name", "suffix"), [("curve", ".png"), ("inspect", ".pdf"), tail("mix", ".svg")]
)
def test_plots_of_commands(run, name, suffix):
    shown = run.ok(*COMMANDS[name], "--plot", f"x{suffix}")
    assert f"report: x{suffix}" in shown.out
    assert Path(f"x{suffix}").read_bytes().startswith(HEADS[suffix])


def test_what_cannot_be_plotted(run, monkeypatch):
    run.refused(2, "inspect", "a", "--plot", "x.jpg", says=("PNG, SVG or PDF", "--plot x.png"))
    run.refused(2, "inspect", "base.safetensors", "--plot", "x.png", says="no figures")
    Path("photo.png").write_bytes(HEADS[".png"] + b"mine")
    run.refused(3, "inspect", "a", "--plot", "photo.png", says="not a plot of loramerge")
    run.refused(3, "inspect", "a", "--plot", "x.svg", "--html", "x.svg", says="replaced")
    monkeypatch.setattr("loramerge.report.plot.find_spec", lambda name: None)
    run.refused(2, "inspect", "a", "--plot", "x.png", says=("matplotlib", "loramerge[report]"))
