"""The numbers of figures: rows and columns of heat maps, spectra, geometry, and bars on terminals."""

from __future__ import annotations

import math

import numpy as np
import pytest

import loramerge as lm
from loramerge.cli.bars import BarColumn, SparklineColumn
from loramerge.families import FAMILIES
from loramerge.report.blocks import heat_maps, measured, norm_bars, place_of, spectra
from loramerge.report.document import HeatMap, Line, Lines, Panel, Panels
from loramerge.report.svg import draw_lines, draw_panels, thinned, ticks


@pytest.mark.parametrize(
    ("module", "place"),
    [
        ("unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
         ("unet", "down_blocks 0.1", "attn1.to_q")),
        ("unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
         ("unet", "mid_block 0", "ff.net.0.proj")),
        ("unet.up_blocks.2.resnets.1.conv1", ("unet", "up_blocks 2.1", "resnets.conv1")),
        ("unet.conv_in", ("unet", "unet", "conv_in")),
        ("text_encoder.text_model.encoder.layers.11.mlp.fc1",
         ("text_encoder", "layers 11", "mlp.fc1")),
        ("transformer.single_transformer_blocks.37.attn.to_q",
         ("transformer", "single_transformer_blocks 37", "attn.to_q")),
        ("transformer.h.3.attn", ("transformer", "transformer", "h.3.attn")),
    ],
)  # fmt: skip
def test_places_of_modules(module, place):
    assert place_of(module) == place


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux1", "wan", "tiny"])
def test_every_module_of_a_family_has_one_cell(name):
    """No value is lost: the energy of all cells is that of all modules."""
    modules = _modules(name)
    maps = heat_maps(dict.fromkeys(modules, 2.0), "t", "c")
    energy = sum(v * v for one in maps for row in one.values for v in row if v is not None)
    assert energy == pytest.approx(4.0 * len(modules))
    assert all(len(one.rows) <= 90 and len(set(one.rows)) == len(one.rows) for one in maps)


def _modules(name):
    return [
        f"{component.name}.{module.path}"
        for component in FAMILIES[name].build()
        for module in component.modules
    ]


def test_cells_combine_as_told():
    values = {"unet.down_blocks.0.attentions.0.a": 3.0, "unet.down_blocks.0.attentions.0.b": None,
              "unet.down_blocks.0.attentions.1.a": math.nan}  # fmt: skip
    (one,) = heat_maps(values, "t", "c", together=max)
    assert (one.rows, one.columns, one.values) == (["down_blocks 0.0"], ["a"], [[3.0]])
    twice = {f"unet.down_blocks.0.attentions.0.transformer_blocks.{n}.a": 3.0 + n for n in (0, 1)}
    assert heat_maps(twice, "t", "c")[0].values == [[5.0]]
    assert heat_maps(twice, "t", "c", together=max)[0].values == [[4.0]]


def test_norms_and_spectra_are_those_of_the_dense_changes(work):
    adapter = lm.load("a.safetensors")
    found = measured(adapter)
    for name, delta in adapter.modules():
        dense = delta.dense().reshape(delta.dense().shape[0], -1)
        norm, values = found[name]
        assert norm == pytest.approx(np.linalg.norm(dense), rel=1e-9)
        expected = np.linalg.svd(dense, compute_uv=False)[: len(values)]
        assert values == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-12)
    bars = norm_bars({"": found})
    assert sum(v * v for _, row in bars.rows for v in row) == pytest.approx(
        sum((norm or 0.0) ** 2 for norm, _ in found.values())
    )
    panels = spectra({"A": found, "B": found})
    assert all(len(panel.series) == 2 for panel in panels.panels)
    for panel in panels.panels:
        middle, low, high = panel.series[0]
        assert all(a <= b <= c for a, b, c in zip(low, middle, high, strict=True))


def test_a_matrix_shows_decimals_or_digits():
    one = HeatMap("t", "c", rows=("a",), columns=("b", "c"), values=[[-0.00001, None]], decimals=2)
    assert one.table().rows == [("a", "0.00", "–")] and one.strongest == 1e-5
    assert HeatMap("t", "c", values=[[0.0]]).strongest == 1.0


@pytest.mark.parametrize(("least", "most"), [(0, 1), (0, 7e9), (-3, 2), (0.2, 0.21), (5, 5)])
def test_ticks_are_round_and_within(least, most):
    found = ticks(least, most)
    assert found == sorted(found) and 1 <= len(found) <= 11
    assert all(least - 1e-9 <= one <= most + 1e-9 for one in found)


def test_long_lines_are_averaged_and_stay_in_the_box():
    points = [(float(n), math.sin(n / 100)) for n in range(5000)]
    assert len(thinned(points)) == 400
    assert np.mean([y for _, y in thinned(points)]) == pytest.approx(
        np.mean([y for _, y in points]), abs=1e-3
    )
    drawing = draw_lines(Lines("t", "c", lines=[Line("x", points, ["a"])], from_zero=False))
    assert len(drawing.paths[-1][1]) < 8000
    for mark in drawing.texts:
        assert 0 <= mark.x <= drawing.width and 0 <= mark.y <= drawing.height


def test_panels_share_axes_and_take_zeros():
    one = Panel("a", [([1.0, 0.0], [1.0, 0.0], [2.0, 1e-9])])
    first, second = draw_panels(Panels("t", "c", panels=[one, Panel("b", [([], [], [])])]))
    assert [mark.text for mark in first.texts] == [mark.text for mark in second.texts]
    assert "nan" not in first.paths[-1][1]
    assert draw_panels(Panels("t", "c", panels=[Panel("b", [([0.0], [0.0], [0.0])])]))


def test_bars_use_what_the_stream_can_encode():
    bars = BarColumn("size", [1.0, 0.5, 0.01, None, 0.0])
    assert bars.cells(8, "utf-8") == ["████████", "████", "▏", "", ""]
    assert bars.cells(8, "cp1252") == ["########", "####", "", "", ""]
    assert bars.cells(8, None) == bars.cells(8, "no such encoding") == bars.cells(8, "ascii")
    assert BarColumn("size", [5.0], most=10.0).cells(8, "utf-8") == ["████"]
    lines = SparklineColumn("spectrum", [[4.0, 2.0, 0.0], [], [0.0], list(range(100))])
    first, empty, zero, long = lines.cells(10, "utf-8")
    assert (first, empty, zero) == ("█▅▁", "", "▁") and len(long) == 10 and long[-1] == "█"
    assert lines.cells(10, "cp437")[0].isascii()
